"""The contrastive losses in eager PyTorch, as a careful user writes them: with the matrix of similarities.

Arguments as in ``fastssl.functional``; rows are normalised here where the fused function normalises.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def logits(x: Tensor, y: Tensor, scale) -> Tensor:
    return scale * (x @ y.T).to(accumulator_dtype(x))


def diagonal(s: Tensor) -> Tensor:
    return torch.eye(*s.shape, dtype=torch.bool, device=s.device)


def pair_logits(z0, z1, temperature) -> tuple[Tensor, Tensor]:
    """s (2B, 2B) with the diagonal at -inf, and the column of each row's positive."""
    z = unit(torch.cat([z0, z1]))
    s = (z @ z.T).to(accumulator_dtype(z)) / temperature
    return s.masked_fill(diagonal(s), -math.inf), torch.arange(len(z), device=z.device).roll(len(z0))


def nt_xent(z0, z1, temperature=0.5) -> Tensor:
    return F.cross_entropy(*pair_logits(z0, z1, temperature))


def dcl(z0, z1, temperature=0.1) -> Tensor:
    s, positive = pair_logits(z0, z1, temperature)
    s_pos = s.gather(1, positive[:, None])
    return (torch.logsumexp(s.scatter(1, positive[:, None], -math.inf), 1) - s_pos[:, 0]).mean()


def hard_nt_xent(z0, z1, temperature=0.5, tau_plus=0.1, beta=1.0) -> Tensor:
    s, positive = pair_logits(z0, z1, temperature)
    count = len(s) - 2
    pos = s.gather(1, positive[:, None])[:, 0].exp()
    s = s.scatter(1, positive[:, None], -math.inf)
    weight = (beta * s).exp()
    total = (weight * s.exp()).sum(1) * count / weight.sum(1) if beta else s.exp().sum(1)
    g = ((total - tau_plus * count * pos) / (1 - tau_plus)).clamp_min(count * math.exp(-1 / temperature))
    return -torch.log(pos / (pos + g)).mean()


def debiased_nt_xent(z0, z1, temperature=0.5, tau_plus=0.1) -> Tensor:
    return hard_nt_xent(z0, z1, temperature, tau_plus, 0.0)


def negative_cosine(p, z) -> Tensor:
    return -F.cosine_similarity(p, z).to(accumulator_dtype(p)).mean()


def byol(p, z) -> Tensor:
    return (2.0 - 2.0 * (unit(p) * unit(z)).sum(1).to(accumulator_dtype(p))).mean()


def info_nce(query, positive_key, temperature=0.1) -> Tensor:
    s = logits(unit(query), unit(positive_key), 1.0 / temperature)
    return F.cross_entropy(s, torch.arange(len(s), device=s.device))


def info_nce_unpaired(query, positive_key, negative_keys, temperature=0.1) -> Tensor:
    q, k, n = unit(query), unit(positive_key), unit(negative_keys)
    s = torch.cat([(q * k).sum(1, keepdim=True).to(accumulator_dtype(q)) / temperature, logits(q, n, 1.0 / temperature)], 1)
    return F.cross_entropy(s, s.new_zeros(len(s), dtype=torch.int64))


def info_nce_paired(query, positive_key, negative_keys, temperature=0.1) -> Tensor:
    q, k, n = unit(query), unit(positive_key), unit(negative_keys)
    s = torch.cat([(q * k).sum(1, keepdim=True), torch.einsum("nd,nmd->nm", q, n)], 1).to(accumulator_dtype(q)) / temperature
    return F.cross_entropy(s, s.new_zeros(len(s), dtype=torch.int64))


def info_nce_hard(query, positive_key, hard_negative_keys, temperature=0.05, weight=0.0) -> Tensor:
    """Supervised SimCSE: the batch's keys and everyone's hard negatives, the own one with ``weight`` on its logit."""
    q = unit(query)
    s = logits(q, unit(torch.cat([positive_key, hard_negative_keys])), 1.0 / temperature)
    own = torch.cat([torch.zeros_like(diagonal(s[:, : len(q)])), diagonal(s[:, len(q) :])], 1)
    return F.cross_entropy(s + weight * own, torch.arange(len(s), device=s.device))


def info_nce_passages(
    query, positive_key, temperature=0.1, margin=None, relative_margin=None, target=None, ids=None, spare_hard_negatives=False,
    query_query=False, doc_query=False, doc_doc: bool | str = False, normalize=True,
) -> Tensor:  # fmt: skip
    """Queries (B, D) against passages (M, D), with every kind of column that ``info_nce`` takes."""
    q, p = (unit(query), unit(positive_key)) if normalize else (query, positive_key)
    group = len(p) // len(q) if target is None or isinstance(target, Tensor) else target
    at = target if isinstance(target, Tensor) else torch.arange(len(q), device=q.device) * group
    ids = torch.arange(len(p), device=q.device) if ids is None else ids
    own, of_query = ids[at], torch.arange(len(q), device=q.device)[:, None] == torch.arange(len(p), device=q.device) // group
    positive = p[at]
    s, own_s = logits(q, p, 1.0), (q * positive).sum(1, keepdim=True).to(accumulator_dtype(q))
    bar = own_s.detach() + (margin or 0.0) + (relative_margin or 0.0) * own_s.detach().abs()
    above = lambda t: (t > bar) & (margin is not None or relative_margin is not None)  # noqa: E731
    dropped = above(s) & ~(of_query & spare_hard_negatives)
    blocks = [(own_s, torch.zeros_like(own_s, dtype=torch.bool)), (s, (own[:, None] == ids) | dropped)]
    if query_query:
        among = logits(q, q, 1.0)
        blocks.append((among, (own[:, None] == own) | above(among)))
    if doc_query:
        blocks.append((logits(positive, q, 1.0), own[:, None] == own))
    if doc_doc:
        blocks.append((logits(positive, p, 1.0), of_query if doc_doc == "other" else own[:, None] == ids))
    every = torch.cat([(block / temperature).masked_fill(out, -math.inf) for block, out in blocks], 1)
    return F.cross_entropy(every, torch.zeros_like(at))


def clip(image, text, logit_scale, ids=None, label_smoothing=0.0) -> Tensor:
    s = logits(image, text, logit_scale)
    if ids is None:
        rows = torch.arange(len(s), device=s.device)
        of_rows, of_columns = (F.cross_entropy(t, rows, label_smoothing=label_smoothing) for t in (s, s.T))
        return 0.5 * (of_rows + of_columns)
    s = s.masked_fill((ids[:, None] == ids) & ~diagonal(s), -math.inf)
    return 0.5 * (_smoothed(s, label_smoothing) + _smoothed(s.T, label_smoothing))


def _smoothed(s, smoothing) -> Tensor:
    """Cross-entropy of the diagonal with label smoothing over the columns that are not excluded."""
    log_p, kept = torch.log_softmax(s, 1), s.detach().isfinite()
    spread = -torch.where(kept, log_p, 0.0).sum(1) / kept.sum(1)
    return ((1 - smoothing) * -log_p.diagonal() + smoothing * spread).mean()


def siglip(image, text, logit_scale, logit_bias, image_id=None, text_id=None, balanced=False) -> Tensor:
    s = logits(image, text, logit_scale) + logit_bias
    same = diagonal(s) if image_id is None else image_id[:, None] == text_id
    likelihood = F.logsigmoid((2.0 * same.to(s.dtype) - 1.0) * s)
    if balanced:
        counts = [same.sum(dim, keepdim=True, dtype=s.dtype).clamp_min(1) for dim in (1, 0)]
        likelihood = torch.where(same, 0.5 / counts[0] + 0.5 / counts[1], 1.0) * likelihood
    return -likelihood.sum() / len(s)


def moco(query, key, queue, temperature=0.07) -> Tensor:
    """queue (D, K), copied as the MoCo repository does so that a push may follow."""
    products = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.clone().detach()], 1)
    s = products.to(accumulator_dtype(query)) / temperature
    return F.cross_entropy(s, s.new_zeros(len(s), dtype=torch.int64))


def sup_con(features, labels=None, mask=None, temperature=0.07, contrast_mode="all") -> Tensor:
    """L_out over features (B, V, D), every pair of samples masked."""
    b, v, _ = features.shape
    z = torch.cat(features.unbind(1))
    if mask is None:
        mask = torch.eye(b, device=z.device) if labels is None else (labels[:, None] == labels).float()
    anchors = z if contrast_mode == "all" else z[:b]
    s = logits(anchors, z, 1.0 / temperature)
    itself = torch.eye(len(s), s.shape[1], dtype=torch.bool, device=z.device)
    positive = mask.to(s.dtype).repeat(len(anchors) // b, v).masked_fill(itself, 0.0)
    log_p = s - torch.logsumexp(s.masked_fill(itself, -math.inf), 1, keepdim=True)
    count = positive.sum(1)
    return -((positive * log_p).sum(1) / count.clamp_min(1e-6)).mean()


def sample_labels(features):
    """Four samples of each label."""
    return torch.arange(len(features), device=features.device) // 4
