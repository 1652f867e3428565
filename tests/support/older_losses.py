"""The case table of ``test_older_losses.py``: each older loss, and the same in float64 on the full matrix, written plainly."""

import math
from functools import partial

import torch
import torch.nn.functional as F

from fastssl.functional import (
    alignment,
    contrastive,
    contrastive_pairs,
    lifted_structured,
    n_pair,
    nce,
    negative_sampling,
    soft_nearest_neighbor,
    triplet,
    triplet_batch,
    uniformity,
)

N, D = 14, 5
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0])  # class 3 has one row
EYE = torch.eye(N, dtype=torch.bool)
SAME = (LABELS[:, None] == LABELS) & ~EYE
OTHER = LABELS[:, None] != LABELS
INDEX = torch.arange(N * 4).reshape(N, 4).mul(7) % 9
LOG_NOISE = torch.linspace(-3, -1, N * 4, dtype=torch.float64)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- the formulas, written plainly ---------------------------------------------------------------------------------------


def root(squares):
    return torch.where(squares == 0, 0, squares.masked_fill(squares == 0, 1).sqrt())


def between(x, y, distance):
    """Distances along the last dimension of x and y, whose rows broadcast."""
    if distance == "cosine":
        return 1 - (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1)
    squares = (x - y).square().sum(-1)
    return squares if distance == "squared" else root(squares)


def matrix(x, distance="euclidean"):
    return between(x[:, None], x[None], distance)


def reduce(terms, reduction):
    """The mean of the terms above 0, the mean of all of them, or their sum."""
    if reduction == "nonzero":
        terms = terms[terms > 0]
    return terms.sum() if reduction == "sum" else terms.sum() / max(1, len(terms))


def plain_contrastive(a, b, margin=1.5):
    d, y = between(a, b, "euclidean"), (LABELS > 0).to(a.dtype)
    return (0.5 * y * d**2 + 0.5 * (1 - y) * (margin - d).clamp(min=0) ** 2).mean()


def plain_pairs(x, pos_margin=0.1, neg_margin=2.5, distance="euclidean", reduction="nonzero"):
    d = matrix(x, distance)
    return reduce((d - pos_margin).relu()[SAME], reduction) + reduce((neg_margin - d).relu()[OTHER], reduction)


def hinge(violation, soft):
    return F.softplus(violation, threshold=40) if soft else violation.relu()


def plain_triplet(a, p, n, margin, distance, soft):
    return hinge(between(a, p, distance) - between(a, n, distance) + margin, soft).mean()


def plain_triplet_batch(x, margin, mining, distance, soft, reduction):
    d = matrix(x, distance)
    if mining == "all":
        violation = (d[:, :, None] - d[:, None, :] + margin)[SAME[:, :, None] & OTHER[:, None, :]]
    else:
        violation = d.masked_fill(~SAME, -math.inf).amax(1) - d.masked_fill(~OTHER, math.inf).amin(1) + margin
        violation = violation[SAME.any(1) & OTHER.any(1)]
    return reduce(hinge(violation, soft), reduction)


def plain_lifted(x, margin=1.0):
    d = matrix(x)
    sums = torch.where(OTHER, (margin - d).exp(), 0).sum(1)
    return ((sums[:, None] + sums).log() + d)[SAME].relu().square().mean() / 2


def plain_n_pair(a, b, l2_reg=0.02):
    s = a @ b.T
    loss = (1 + torch.where(EYE, 0, (s - s.diag()[:, None]).exp()).sum(1)).log().mean()
    return loss + l2_reg / 4 * (a.square().sum(1).mean() + b.square().sum(1).mean())


def negatives(keys, mode):
    return {"shared": keys, "own": keys, "index": keys[INDEX] if mode == "index" else None}[mode]


def plain_nce(q, k, noise, temperature, mode, log_noise=None, n=100, log_z=1.0):
    """Computed from the probabilities h = P / (P + M Pn), as the paper writes it."""
    noise = negatives(noise, mode)
    m = noise.shape[-2]
    pn_pos, pn_neg = (1 / n, 1 / n) if log_noise is None else (t.exp().to(q.dtype) for t in log_noise)
    p_pos = ((q * k).sum(1) / temperature - log_z).exp()
    p_neg = ((q @ noise.T if noise.dim() == 2 else (noise * q[:, None]).sum(-1)) / temperature - log_z).exp()
    return -((p_pos / (p_pos + m * pn_pos)).log() + (m * pn_neg / (p_neg + m * pn_neg)).log().sum(1)).mean()


def plain_sampling(q, k, noise, mode):
    noise = negatives(noise, mode)
    s = q @ noise.T if noise.dim() == 2 else (noise * q[:, None]).sum(-1)
    return -((q * k).sum(1).sigmoid().log() + (-s).sigmoid().log().sum(1)).mean()


def plain_soft_nearest(x, temperature, distance):
    e = (-matrix(x, distance) / temperature).exp()
    own, every = torch.where(SAME, e, 0).sum(1), torch.where(EYE, 0, e).sum(1)
    rows = SAME.any(1)
    return -(own[rows] / every[rows]).log().mean()


def plain_uniformity(x, t):
    return matrix(x, "squared")[torch.ones(N, N, dtype=torch.bool).triu(1)].mul(-t).exp().mean().log()


# --- name -> (inputs, ours, plain) ---------------------------------------------------------------------------------------

ONE = {"x": (N, D)}
TWO = {"a": (N, D), "b": (N, D)}
NOISE = {"shared": (6, D), "own": (N, 4, D), "index": (9, D)}
CASES = {
    "contrastive": (TWO, lambda a, b: contrastive(a, b, LABELS, 1.5), plain_contrastive),
    "contrastive bool": (TWO, lambda a, b: contrastive(a, b, LABELS > 0, 1.5), plain_contrastive),
    "lifted": (ONE, lambda x: lifted_structured(x, LABELS), plain_lifted),
    "n_pair": (TWO, lambda a, b: n_pair(a, b, 0.02), plain_n_pair),
    "uniformity": (ONE | {"t": ()}, uniformity, plain_uniformity),
}
for alpha in (0.5, 1.0, 2.0, 3.0):
    CASES[f"alignment {alpha}"] = (
        TWO,
        partial(lambda a, b, alpha: alignment(a, b, alpha), alpha=alpha),
        partial(lambda a, b, alpha: between(a, b, "euclidean").pow(alpha).mean(), alpha=alpha),
    )
for distance in ("euclidean", "squared", "cosine"):
    for reduction in ("nonzero", "mean", "sum"):
        kwargs = {"pos_margin": 0.1, "neg_margin": 2.5, "distance": distance, "reduction": reduction}
        CASES[f"pairs {distance} {reduction}"] = (
            ONE,
            partial(lambda x, kwargs: contrastive_pairs(x, LABELS, **kwargs), kwargs=kwargs),
            partial(plain_pairs, **kwargs),
        )
    CASES[f"soft_nearest {distance}"] = (
        ONE | {"temperature": ()},
        partial(
            lambda x, temperature, distance: soft_nearest_neighbor(x, LABELS, temperature, distance=distance), distance=distance
        ),
        partial(plain_soft_nearest, distance=distance),
    )
    for soft in (False, True):
        kwargs = {"margin": 0.3, "distance": distance, "soft": soft}
        CASES[f"triplet {distance} {'soft' if soft else 'hinge'}"] = (
            {"a": (N, D), "p": (N, D), "n": (N, D)},
            partial(lambda a, p, n, kwargs: triplet(a, p, n, **kwargs), kwargs=kwargs),
            partial(plain_triplet, **kwargs),
        )
        for mining in ("all", "hard"):
            kwargs = {"margin": 0.3, "distance": distance, "soft": soft, "mining": mining}
            kwargs["reduction"] = {"euclidean": "nonzero", "squared": "mean", "cosine": "sum"}[distance]
            CASES[f"triplet_batch {mining} {distance} {'soft' if soft else 'hinge'}"] = (
                ONE,
                partial(lambda x, kwargs: triplet_batch(x, LABELS, **kwargs), kwargs=kwargs),
                partial(plain_triplet_batch, **kwargs),
            )
for mode, noise in NOISE.items():
    inputs = {"q": (N, D), "k": (N, D), "noise": noise}
    index = INDEX if mode == "index" else None
    logs = (LOG_NOISE[:N], LOG_NOISE[:6] if mode == "shared" else LOG_NOISE.reshape(N, 4))
    known = {"log_noise_pos": logs[0], "log_noise_neg": logs[1], "noise_index": index, "log_z": 0.5}
    CASES[f"nce uniform {mode}"] = (
        inputs | {"temperature": (), "log_z": ()},
        partial(
            lambda q, k, noise, temperature, log_z, index: nce(q, k, noise, temperature, n=100, log_z=log_z, noise_index=index),
            index=index,
        ),
        partial(plain_nce, mode=mode),
    )
    CASES[f"nce known {mode}"] = (
        inputs,
        partial(lambda q, k, noise, known: nce(q, k, noise, 1.5, **known), known=known),
        partial(plain_nce, temperature=1.5, mode=mode, log_noise=logs, log_z=0.5),
    )
    CASES[f"negative_sampling {mode}"] = (
        inputs,
        partial(lambda q, k, noise, index: negative_sampling(q, k, noise, negative_index=index), index=index),
        partial(plain_sampling, mode=mode),
    )

BLOCKED = [
    name for name in CASES if name.split()[0] in ("pairs", "lifted", "triplet_batch", "soft_nearest", "nce", "negative_sampling")
]


def make_inputs(case, dtype=torch.float32):
    made = {}
    for seed, (name, shape) in enumerate(CASES[case][0].items()):
        wide = torch.promote_types(dtype, torch.float32)
        made[name] = randn(*shape, seed=seed, dtype=dtype) if shape else torch.tensor(1.2, dtype=wide)
    return made


def run(call, inputs, dtype=None):
    """The value, and the gradients by name."""
    leaves = {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in inputs.items()}
    out = call(**leaves)
    return out.detach(), dict(zip(leaves, torch.autograd.grad(out, list(leaves.values())), strict=True))


def assert_same(got, want, **kwargs):
    torch.testing.assert_close(got[0], want[0], **kwargs)
    for name in want[1]:
        torch.testing.assert_close(got[1][name], want[1][name], **kwargs)
