"""The losses written plainly on the full matrix, with the arguments of the public functions: what ``losses.py`` compares with.

Everything is computed in the dtype of the inputs, float32 at least.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.normalize import EPS


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS)


def number(value, like: Tensor):
    """A scalar, or a one-element tensor as () in the dtype of ``like``."""
    return value.reshape(()).to(like.dtype) if isinstance(value, Tensor) else value


def reduce(rows: Tensor, reduction: str) -> Tensor:
    return rows.flatten() if reduction == "none" else getattr(rows, reduction)()


def softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40)


def lse(s: Tensor, keep: Tensor, empty: float = -math.inf) -> Tensor:
    """Log-sum-exp of the kept entries of each row; ``empty`` for a row without any, with gradient 0."""
    some = keep.any(1)
    found = torch.logsumexp(torch.where(keep, s, -math.inf).masked_fill(~some[:, None], 0.0), 1)
    return torch.where(some, found, empty)


def all_but_self(n: int) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool)


def root(squares: Tensor) -> Tensor:
    return torch.where(squares == 0, 0.0, squares.masked_fill(squares == 0, 1.0).sqrt())


def between(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """x, y broadcast over rows -> distances along the last dimension; for "cosine" a zero row is at 1 from every row."""
    if distance == "cosine":
        return 1.0 - (unit(x) * unit(y)).sum(-1)
    squares = (x - y).square().sum(-1)
    return squares if distance == "squared" else root(squares)


# --- two views ---------------------------------------------------------------------------------------------------------------


def _views(z0, z1, temperature, normalize):
    """Logits (2B, 2B), which are negatives, and the positives (2B,)."""
    z = torch.cat([wide(z0), wide(z1)])
    z = unit(z) if normalize else z
    s, b = z @ z.T / number(temperature, z), len(z0)
    pair = torch.arange(b).repeat(2)
    partner = torch.arange(2 * b).roll(b)
    return z, s, pair[:, None] != pair, s[torch.arange(2 * b), partner]


def nt_xent(z0, z1, temperature=0.5, normalize=True, reduction="mean", group=None):
    _, s, keep, positive = _views(z0, z1, temperature, normalize)
    return reduce(softplus(lse(s, keep) - positive), reduction)


def dcl(z0, z1, temperature=0.1, normalize=True, reduction="mean", group=None, weight_fn=None):
    z, s, keep, positive = _views(z0, z1, temperature, normalize)
    if weight_fn is not None:
        a, b = z.chunk(2)
        positive = positive * torch.cat([weight_fn(a, b), weight_fn(b, a)])
    return reduce(lse(s, keep) - positive, reduction)


def hard_nt_xent(z0, z1, temperature=0.5, tau_plus=0.1, beta=1.0, normalize=True, reduction="mean"):
    _, s, keep, positive = _views(z0, z1, temperature, normalize)
    count = 2 * len(z0) - 2
    total = lse((1.0 + beta) * s, keep)
    if beta > 0:
        total = total + math.log(count) - lse(beta * s, keep)
    peak = torch.maximum(total, positive).detach()
    rest = ((total - peak).exp() - tau_plus * count * (positive - peak).exp()) / (1.0 - tau_plus)
    above = rest > 0
    corrected = torch.where(above, rest.masked_fill(~above, 1.0).log() + peak, -math.inf)
    scale = 1.0 / number(temperature, s)
    floor = torch.as_tensor(math.log(count) - scale, dtype=s.dtype)
    return reduce(softplus(torch.maximum(corrected, floor.expand_as(corrected)) - positive), reduction)


def debiased_nt_xent(z0, z1, temperature=0.5, tau_plus=0.1, normalize=True, reduction="mean"):
    return hard_nt_xent(z0, z1, temperature, tau_plus, 0.0, normalize, reduction)


def negative_cosine(p, z, reduction="mean"):
    return reduce(-(unit(wide(p)) * unit(wide(z))).sum(1), reduction)


def byol_loss(p, z, reduction="mean"):
    return reduce(2.0 - 2.0 * (unit(wide(p)) * unit(wide(z))).sum(1), reduction)


# --- queries and keys --------------------------------------------------------------------------------------------------------


def similarity_lse(x, y, scale=1.0, x_id=None, y_id=None, y_bias=None):
    x, y = wide(x), wide(y)
    s = number(scale, x) * (x @ y.T)
    s = s if y_bias is None else s + y_bias.to(s.dtype)
    y_id = x_id if y_id is None else y_id
    return lse(s, torch.ones_like(s, dtype=torch.bool) if x_id is None else x_id.long()[:, None] != y_id.long())


def _cross_entropy(s: Tensor, keep: Tensor, positive: Tensor, smoothing: float) -> Tensor:
    """Of the positive among itself and the kept columns, smoothed over them."""
    loss = softplus(lse(s, keep) - positive)
    mean = (positive + torch.where(keep, s, 0.0).sum(1)) / (keep.sum(1) + 1)
    return loss + smoothing * (positive - mean) if smoothing else loss


def info_nce(
    query, positive_key, negative_keys=None, temperature=0.1, reduction="mean", negative_mode="unpaired", normalize=True,
    symmetric=False, return_stats=False, group=None, ids=None, hard_negative_keys=None, hard_negative_weight=0.0,
    label_smoothing=0.0, **of_passages,
):  # fmt: skip
    if of_passages:
        return _passages(query, positive_key, temperature, reduction, normalize, return_stats, ids, of_passages)
    q, k = wide(query), wide(positive_key)
    extra = negative_keys if hard_negative_keys is None else hard_negative_keys
    extra = None if extra is None else wide(extra)
    if normalize:
        q, k, extra = unit(q), unit(k), None if extra is None else unit(extra)
    scale, n = 1.0 / number(temperature, q), len(q)
    dots, positive = q @ k.T, (q * k).sum(1)
    keep = all_but_self(n) if ids is None else ids.long()[:, None] != ids.long()
    if negative_keys is not None:
        dots = q @ extra.T if negative_mode == "unpaired" else (extra * q[:, None]).sum(-1)
        keep = torch.ones_like(dots, dtype=torch.bool)
    elif extra is not None:
        dots = torch.cat([dots, q @ extra.T], 1)
        keep = torch.cat([keep, torch.ones(n, len(extra), dtype=torch.bool)], 1)
    s = scale * dots
    if hard_negative_weight:
        s = s + torch.cat([torch.zeros(n, n), torch.eye(n)], 1).to(s.dtype) * hard_negative_weight
    rows = _cross_entropy(s, keep, scale * positive, label_smoothing)
    loss = rows
    if symmetric:
        loss = torch.stack([rows, _cross_entropy(s.T, keep.T, scale * positive, label_smoothing)])
    loss = 0.5 * loss.sum() if symmetric and reduction == "sum" else reduce(loss, reduction)
    if not return_stats:
        return loss
    return loss, rows.detach(), positive.detach(), (torch.where(keep, dots, 0.0).sum(1) / keep.sum(1)).detach()


def _passages(query, passages, temperature, reduction, normalize, return_stats, ids, how):
    """``how`` holds the arguments of ``info_nce`` from target on."""
    target, margin, relative_margin, spare_hard_negatives, query_query, doc_query, doc_doc = how.values()
    q, p = wide(query), wide(passages)
    if normalize:
        q, p = unit(q), unit(p)
    n, m = len(q), len(p)
    at = target.long() if isinstance(target, Tensor) else torch.arange(n) * int(target)
    ids = torch.arange(m) if ids is None else ids.long()
    several = at.reshape(n, -1)  # -1 where there are fewer
    dots, there = (q @ p.T).gather(1, several.clamp_min(0)), several >= 0
    if at.dim() == 2:  # ids that no other passage has
        for i, row in enumerate(several):
            ids[row[row >= 0]] = m + i
        at = several.clamp_min(0).gather(1, torch.where(there, dots.detach(), -math.inf).argmax(1, keepdim=True))[:, 0]
    own, positive = ids[at], p[at]
    mine = (
        torch.zeros(n, m, dtype=torch.bool) if isinstance(target, Tensor) else torch.arange(n)[:, None] == torch.arange(m) // target
    )
    dot = (q * positive).sum(1)
    limit = dot.detach() + (margin or 0.0) + (relative_margin or 0.0) * dot.detach().abs()
    under = lambda s: torch.ones_like(s, dtype=torch.bool) if margin is relative_margin is None else ~(s > limit[:, None])  # noqa: E731
    s = q @ p.T
    others = own[:, None] != ids
    blocks = [(s, others & (under(s) | mine if spare_hard_negatives else under(s)))]
    if query_query:
        blocks.append((q @ q.T, (own[:, None] != own) & under(q @ q.T)))
    if doc_query:
        blocks.append((positive @ q.T, own[:, None] != own))
    if doc_doc:
        blocks.append((positive @ p.T, ~mine if doc_doc == "other" else others))
    scale = 1.0 / number(temperature, q)
    every, keep = torch.cat([scale * block for block, _ in blocks], 1), torch.cat([keep for _, keep in blocks], 1)
    rows = torch.where(there, softplus(lse(every, keep)[:, None] - scale * dots), 0.0).sum(1) / there.sum(1)
    loss = reduce(rows, reduction)
    if not return_stats:
        return loss
    return loss, rows.detach(), dot.detach(), (torch.where(others, s, 0.0).sum(1) / others.sum(1)).detach()


def moco_loss(query, key, queue, temperature=0.07, layout="dk", return_stats=False, reduction="mean"):
    common = torch.promote_types(query.dtype, queue.dtype)
    keys = (queue.T if layout == "dk" else queue).detach().to(common)
    how = {"normalize": False, "return_stats": return_stats, "reduction": reduction}
    return info_nce(query.to(common), key.to(common), keys, temperature, **how)


def moco_v3_loss(query, key, temperature=0.2, normalize=True):
    loss = info_nce(query, key.detach(), temperature=temperature, normalize=normalize)
    return loss * (2.0 * number(temperature, loss))


def clip_loss(image, text, logit_scale, logit_bias=None, normalize=False, group=None, ids=None, label_smoothing=0.0):
    how = {"symmetric": True, "normalize": normalize, "ids": ids, "label_smoothing": label_smoothing}
    scale = number(logit_scale, wide(image))
    if isinstance(scale, Tensor) or scale != 0:
        return info_nce(image, text, temperature=1.0 / scale, **how)
    return info_nce(image, text, temperature=math.inf, **how)


def siglip_loss(
    image, text, logit_scale, logit_bias, normalize=False, group=None, image_id=None, text_id=None, weighting="none"
):  # fmt: skip
    x, y = wide(image), wide(text)
    x, y = (unit(x), unit(y)) if normalize else (x, y)
    s = number(logit_scale, x) * (x @ y.T) + number(logit_bias, x)
    n = len(x)
    text_id = image_id if text_id is None else text_id
    same = ~all_but_self(n) if image_id is None else image_id.long()[:, None] == text_id.long()
    terms = softplus(torch.where(same, -s, s))
    if weighting == "balanced":
        rows, columns = (same.sum(dim, keepdim=True).clamp_min(1).to(terms.dtype) for dim in (1, 0))
        terms = torch.where(same, 0.5 / rows + 0.5 / columns, 1.0) * terms
    return terms.sum() / n


def sup_con(
    features, labels=None, temperature=0.07, base_temperature=None, normalize=False, group=None, mask=None, contrast_mode="all",
    reduction="mean",
):  # fmt: skip
    z = wide(features).flatten(2)
    z = unit(z) if normalize else z
    b, v, _ = z.shape
    rows = z.transpose(0, 1).reshape(b * v, -1)
    scale = 1.0 / number(temperature, z)
    s = scale * (rows @ rows.T)
    labels = torch.arange(b) if labels is None else labels.reshape(b)
    weight = (labels[:, None] == labels).to(z.dtype) if mask is None else mask.to(z.dtype)
    positive = weight.repeat(v, v).masked_fill(~all_but_self(b * v), 0.0)
    count = positive.sum(1)
    loss = lse(s, all_but_self(b * v)) - (positive * s).sum(1) / count.clamp_min(1e-6)
    loss = torch.where(count > 1e-6, loss, 0.0)
    factor = 1.0 if base_temperature is None else number(temperature, z) / number(base_temperature, z)
    return factor * reduce(loss[:b] if contrast_mode == "one" else loss, reduction)


def matryoshka(loss, first, second, dims, weights=None):
    weights = [1.0] * len(dims) if weights is None else weights
    return sum(w * loss(wide(first)[..., :d], wide(second)[..., :d]) for d, w in zip(dims, weights, strict=True))


def nearest_neighbor(query, bank, exclude=None):
    s = wide(query) @ wide(bank).T
    s = s if exclude is None else s.masked_fill(torch.arange(len(bank)) == exclude[:, None], -math.inf)
    return s.argmax(1)


# --- the older losses --------------------------------------------------------------------------------------------------------


def contrastive(a, b, label, margin=1.0, reduction="mean"):
    d = between(wide(a), wide(b), "euclidean")
    return reduce(torch.where(label != 0, 0.5 * d.square(), 0.5 * (margin - d).relu().square()), reduction)


def _labelled(features, labels, distance):
    """Distances (N, N), pairs of one class but not of a row with itself, pairs of two classes."""
    x = wide(features)
    same = labels[:, None] == labels
    return between(x[:, None], x[None], distance), same & all_but_self(len(x)), ~same


def _terms(terms: Tensor, reduction: str) -> Tensor:
    total = terms.sum()
    if reduction == "sum":
        return total
    return total / max(1, int((terms > 0).sum()) if reduction == "nonzero" else terms.numel())


def contrastive_pairs(features, labels, pos_margin=0.0, neg_margin=1.0, distance="euclidean", reduction="nonzero"):
    d, same, other = _labelled(features, labels, distance)
    return _terms((d - pos_margin).relu()[same], reduction) + _terms((neg_margin - d).relu()[other], reduction)


def _margin(margin, soft):
    return (0.0 if soft else 1.0) if margin is None else margin


def _hinge(violation, soft):
    return softplus(violation) if soft else violation.relu()


def triplet(anchor, positive, negative, margin=None, distance="euclidean", soft=False, reduction="mean"):
    a, p, n = wide(anchor), wide(positive), wide(negative)
    violation = between(a, p, distance) - between(a, n, distance) + _margin(margin, soft)
    return reduce(_hinge(violation, soft), reduction)


def triplet_batch(features, labels, margin=None, mining="all", distance="euclidean", soft=False, reduction="nonzero"):
    d, same, other = _labelled(features, labels, distance)
    if mining == "all":
        violation = (d[:, :, None] - d[:, None, :])[same[:, :, None] & other[:, None, :]]
    else:
        rows = same.any(1) & other.any(1)
        violation = (d.masked_fill(~same, -math.inf).amax(1) - d.masked_fill(~other, math.inf).amin(1))[rows]
    return _terms(_hinge(violation + _margin(margin, soft), soft), reduction)


def lifted_structured(features, labels, margin=1.0):
    d, same, other = _labelled(features, labels, "euclidean")
    sums = lse(margin - d, other, 0.0)
    some = same & other.any(1) & other.any(1)[:, None]
    bound = (torch.logaddexp(sums[:, None], sums) + d).relu().square()
    return 0.5 * torch.where(some, bound, 0.0).sum() / same.sum().clamp_min(1)


def n_pair(anchor, positive, l2_reg=0.0, reduction="mean"):
    a, p = wide(anchor), wide(positive)
    s = a @ p.T
    loss = softplus(lse(s, all_but_self(len(a))) - s.diagonal())
    return reduce(loss + 0.25 * l2_reg * (a.square().sum(1) + p.square().sum(1)), reduction)


def _logits(query, keys, index, temperature):
    q, keys = wide(query), wide(keys)
    keys = keys if index is None else keys[index.long()]
    return (q @ keys.T if keys.dim() == 2 else (keys * q[:, None]).sum(-1)) / number(temperature, q)


def nce(
    query, positive_key, noise_keys, temperature=0.07, n=None, log_noise_pos=None, log_noise_neg=None, noise_index=None, log_z=0.0,
    reduction="mean",
):  # fmt: skip
    q = wide(query)
    u = _logits(query, noise_keys, noise_index, temperature)
    positive = (q * wide(positive_key)).sum(1) / number(temperature, q)
    uniform = None if n is None else -math.log(n)
    pos, neg = (uniform, uniform) if n is not None else (log_noise_pos.to(q.dtype), log_noise_neg.to(q.dtype))
    shift = math.log(u.shape[1]) + number(log_z, q)
    return reduce(softplus(shift + pos - positive) + softplus(u - shift - neg).sum(1), reduction)


def nce_log_z(query, noise_keys, temperature=0.07, n=1, noise_index=None):
    u = _logits(query, noise_keys, noise_index, temperature).detach()
    return torch.logsumexp(u.flatten(), 0) - math.log(u.numel()) + math.log(n)


def negative_sampling(query, positive_key, negative_keys, temperature=1.0, negative_index=None, reduction="mean"):
    q = wide(query)
    positive = (q * wide(positive_key)).sum(1) / number(temperature, q)
    return reduce(softplus(-positive) + softplus(_logits(query, negative_keys, negative_index, temperature)).sum(1), reduction)


def sampled_info_nce(query, keys, positive_index, negative_index, temperature=0.1, reduction="mean"):
    c, q = (z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1e-8) for z in (wide(query), wide(keys)))
    index = torch.cat([positive_index[:, None].long(), negative_index.long()], 1)
    again = (keys[index[:, 1:]] == keys[index[:, :1]]).all(2)
    u = (c[:, None] * q[index]).sum(2) / number(temperature, c)
    u = torch.cat([u[:, :1], u[:, 1:].masked_fill(again, -math.inf)], 1)
    return reduce(torch.logsumexp(u, 1) - u[:, 0], reduction)


def soft_nearest_neighbor(features, labels, temperature=1.0, distance="squared", reduction="mean"):
    d, same, other = _labelled(features, labels, distance)
    s = -d / number(temperature, d)
    loss = softplus(lse(s, other, 0.0) - lse(s, same, 0.0))
    loss = torch.where(same.any(1) & other.any(1), loss, 0.0)
    return loss.sum() / same.any(1).sum().clamp_min(1) if reduction == "mean" else reduce(loss, reduction)


def alignment(x, y, alpha=2.0, reduction="mean"):
    squares = (wide(x) - wide(y)).square().sum(1)
    apart = squares > 0
    return reduce(torch.where(apart, squares.masked_fill(~apart, 1.0).pow(0.5 * alpha), 0.0), reduction)


def uniformity(x, t=2.0):
    d = between(wide(x)[:, None], wide(x)[None], "squared")
    s = -number(t, d) * d
    return torch.logsumexp(s[all_but_self(len(x))], 0) - math.log(len(x) * (len(x) - 1))
