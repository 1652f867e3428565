"""InfoNCE over negatives that are drawn from a table: wav2vec 2.0's loss (Baevski et al. 2020, eq. 3).

    L_i = -log exp(cos(c_i, q_i+) / t) / sum over the positive and the J negatives of exp(cos(c_i, q_j) / t)

The index names rows of the table, so neither the rows (M, J, D) nor their products are written, forward or backward.
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype, check_like, check_matrix, check_scalar
from fastssl.ops.sampled_info_nce import sampled_losses

from .parts.arguments import enter, scalar
from .parts.ids import check_index
from .parts.reductions import check_reduction, reduce_rows


def sampled_info_nce(
    query: Tensor,
    keys: Tensor,
    positive_index: Tensor,
    negative_index: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE of each query against one positive and J sampled negatives, all of them rows of one table.

    The contrastive loss of wav2vec 2.0 (Baevski et al. 2020, https://arxiv.org/abs/2006.11477, eq. 3), over cosines:
    ``L_i = log sum_j exp(cos(c_i, q_j) / t) - cos(c_i, q_i+) / t``, the sum over the positive and those negatives that differ from
    it: a negative whose row equals the positive's in all entries is left out, as in fairseq and transformers, since codebooks that
    are used little make many such. A negative that is drawn twice counts twice.

    Args:
        query: (M, D) float32, bfloat16, float16 or float64: contexts c of the masked frames. Rows of any length; one shorter than
            1e-8 is divided by that, as in ``torch.cosine_similarity``.
        keys: (K, D), same dtype and device: the table q, such as the quantised targets of all masked frames.
        positive_index: (M,) integers in [0, K), the row of ``keys`` that is right for each query.
        negative_index: (M, J) integers in [0, K), J at least 1: the rows that it is compared with.
        temperature: t, a number or a one-element float tensor, not 0. A tensor may need a gradient.
        reduction: "mean" or "sum" over the queries (wav2vec 2.0 sums), or "none" for the losses (M,).

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. The similarities (M, 1 + J) and the
        gradient of ``query`` are kept for the backward, which sums each row of the gradient of ``keys`` in a fixed order. On a GPU
        an index out of range gives NaN. Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, index, temperature or reduction.
        NotImplementedError: the call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> targets = torch.eye(4)
        >>> at = torch.arange(4)
        >>> loss = sampled_info_nce(targets, targets, at, (at[:, None] + torch.tensor([1, 2])) % 4, temperature=1.0)
        >>> round(loss.item(), 4) == round(torch.tensor(1 + 2 * torch.e**-1).log().item(), 4)  # cosines of 1, 0 and 0
        True
    """
    op = "sampled_info_nce"
    query, keys = enter(op, query, keys)
    check_reduction(op, reduction)
    check_matrix(op, "query", query, "M, D")
    check_matrix(op, "keys", keys, "K, D")
    if keys.shape[1] != query.shape[1]:
        raise ValueError(f"{op}: keys must have shape (K, {query.shape[1]}), the width of query, got {tuple(keys.shape)}")
    check_like(op, "keys", keys, "query", query)
    check_index(op, "positive_index", positive_index, 1, "keys", len(keys), query)
    check_index(op, "negative_index", negative_index, 2, "keys", len(keys), query)
    check_scalar(op, "temperature", temperature, query, zero=False)
    scale = 1.0 / scalar(temperature, query)
    if not isinstance(scale, Tensor):
        scale = query.new_full((), scale, dtype=accumulator_dtype(query))
    index = torch.cat([positive_index[:, None].long(), negative_index.long()], 1)
    return reduce_rows(sampled_losses(query, keys, index, scale), reduction)
