"""Negative sampling over two tables of words, the update of word2vec: skip-gram and CBOW (Mikolov et al. 2013b, eq. 4)."""

import torch
from torch import Tensor

from fastssl.checks import INTEGERS, check_dense, check_flag, check_like, check_matrix, check_same_device, readable
from fastssl.ops.word_pairs import pair_losses

from .parts.arguments import enter
from .parts.reductions import check_reduction, reduce_rows


def word_pairs(
    inputs: Tensor,
    outputs: Tensor,
    input_ids: Tensor,
    target_ids: Tensor,
    negative_ids: Tensor,
    *,
    sparse: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Negative sampling of pairs of words, with gradients as sparse as the words of the batch.

    ``L_b = -log sigmoid(<h_b, outputs[target_b]>) - sum_k log sigmoid(-<h_b, outputs[negative_bk]>)``, where h_b is the row
    ``input_ids[b]`` of ``inputs`` (skip-gram), or the mean of the rows of a window (CBOW): Mikolov et al. 2013,
    https://arxiv.org/abs/1310.4546, equation 4. The paper has the sum over the pairs.

    Args:
        inputs: (V, D), the vectors of words as inputs; float32, bfloat16, float16 or float64.
        outputs: (U, D), their vectors as targets; same dtype and device.
        input_ids: (B,), or (B, C) for the mean over C words; integers. A word of -1 is left out of the mean.
        target_ids: (B,) integers, rows of ``outputs``.
        negative_ids: (B, K) integers, rows of ``outputs``. A word of -1 is left out, such as one that equals the target.
        sparse: whether the gradients are sparse: COO tensors of the rows that occur, each once and in rising order, for
            ``fastssl.optim.SparseAdam``, or torch's ``SGD`` without momentum and ``Adagrad``. Otherwise they are whole tables.
            ``DistributedDataParallel`` takes sparse ones of tables that are the weights of ``nn.Embedding(sparse=True)``.
        reduction: "mean" or "sum" over the pairs, or "none" for the losses (B,).

    Returns:
        The loss, float32 (float64 for float64), summed over target and negatives; a scalar unless ``reduction="none"``. Memory
        O(B D + B K) and the gradients. On a GPU an id that
        is no row gives NaN. Differentiable once. With ``sparse`` a compiled graph breaks here.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or reduction, or an id that is no row.
        NotImplementedError: the call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> words, contexts = (torch.zeros(50_000, 8, requires_grad=True) for _ in range(2))
        >>> loss = word_pairs(words, contexts, torch.tensor([3, 7]), torch.tensor([4, 4]), torch.tensor([[9, 1], [9, 30]]))
        >>> round(loss.item(), 4)  # three times log 2
        2.0794
        >>> loss.backward()
        >>> contexts.grad.coalesce().indices().tolist()
        [[1, 4, 9, 30]]
    """
    op = "word_pairs"
    inputs, outputs = enter(op, inputs, outputs)
    check_reduction(op, reduction)
    check_flag(op, "sparse", sparse)
    check_matrix(op, "inputs", inputs, "V, D")
    check_matrix(op, "outputs", outputs, "U, D")
    if inputs.shape[1] != outputs.shape[1]:
        raise ValueError(f"{op}: outputs must be (U, {inputs.shape[1]}), as wide as inputs, got {tuple(outputs.shape)}")
    check_like(op, "outputs", outputs, "inputs", inputs)
    check_dense(op, "input_ids", input_ids, "an integer tensor (B,) or (B, C)")
    if input_ids.dim() not in (1, 2) or 0 in input_ids.shape:
        raise ValueError(f"{op}: input_ids must have shape (B,) or (B, C), got {tuple(input_ids.shape)}")
    pairs, several = input_ids.shape[0], input_ids.dim() == 2
    _check_ids(op, "input_ids", input_ids, pairs, "({}, C)" if several else "({},)", "inputs", inputs, -1 if several else 0)
    _check_ids(op, "target_ids", target_ids, pairs, "({},)", "outputs", outputs, 0)
    _check_ids(op, "negative_ids", negative_ids, pairs, "({}, K)", "outputs", outputs, -1)
    targets = torch.cat([target_ids.long()[:, None], negative_ids.long()], dim=1)
    return reduce_rows(pair_losses(inputs, outputs, input_ids.long().view(pairs, -1), targets, bool(sparse)), reduction)


def _check_ids(op: str, name: str, ids: Tensor, pairs: int, shape: str, table_name: str, table: Tensor, low: int) -> None:
    """Integers of a shape such as "({}, K)", with a row for each pair, that are rows of the table; or -1 where ``low`` is."""
    check_dense(op, name, ids, f"an integer tensor {shape}", pairs)
    if ids.dtype not in INTEGERS:
        raise TypeError(f"{op}: {name} must be an integer tensor {shape.format(pairs)}, got {ids.dtype}")
    if ids.dim() != (1 if shape == "({},)" else 2) or ids.shape[0] != pairs or 0 in ids.shape:
        raise ValueError(f"{op}: {name} must have shape {shape.format(pairs)}, got {tuple(ids.shape)}")
    check_same_device(op, name, ids, table_name, table)
    if readable(ids):
        least, most = (int(t) for t in ids.aminmax())
        if least < low or most >= len(table):
            or_none = ", or -1 for none" if low < 0 else ""
            raise ValueError(
                f"{op}: {name} must be rows of {table_name}, from 0 to {len(table) - 1}{or_none}, got {least} to {most}"
            )
