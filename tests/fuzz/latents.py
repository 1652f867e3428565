"""Rows of the losses of neighbours and of latent targets."""

import torch

from fastssl import functional
from fastssl.testing import latents as plain

from .table import Case, Maker


def _koleo(m: Maker) -> dict:
    topk, groups = m.choice((1, 1, 2)), m.choice((1, 1, 3))
    size = topk + m.choice((1, 2, 6))
    return {
        "z": m.leaf(groups * size, m.choice((2, 5, 9))),
        "p": m.choice((2, 2.0, 1.5)),
        "topk": topk,
        "eps": m.choice((1e-8, 1e-3)),
        "group_size": size if groups > 1 else m.choice((None, size)),
        "group": None,
    }


def _koleo_truth(group=None, **arguments):
    return plain.koleo(**arguments)


def _masked_latent(m: Maker) -> dict:
    samples, length, width, tokens = m.choice((1, 3)), m.choice((1, 6)), m.choice((1, 5, 16)), m.choice((1, 4))
    blocks, kind = m.choice((1, 1, 2)), m.choice(("ids", "ids", "none", "list", "lists"))
    ids = [m.integers(0, length, samples, tokens) for _ in range(blocks)]
    if kind == "none":
        tokens = length
    pred = [m.leaf(samples, tokens, width) for _ in range(blocks)]
    rows = torch.cat(pred).detach().requires_grad_(pred[0].requires_grad)
    weight = None if kind == "lists" else m.maybe(m.integers(0, 3, len(rows), tokens).to(torch.float32), 0.3)
    return {
        "pred": pred if kind == "lists" else rows,
        "target": 2.0 * m.rows(samples, length, width) + 0.5,
        "ids": {"none": None, "ids": torch.cat(ids)}.get(kind, ids),
        "loss": m.choice(("l1", "l2", "smooth_l1", 2, 1.5)),
        "beta": m.choice((1.0, 0.5, 0)),
        "normalize": m.random() < 0.7,
        "eps": m.choice((1e-5, 1e-2)),
        "weight": weight,
        "reduction": m.choice(("mean", "sum") if kind == "lists" else ("mean", "sum", "none")),
    }


def _mmcr(m: Maker) -> dict:
    shape = m.choice((1, 3, 8)), m.choice((1, 2)), m.choice((4, 9))
    return {"online": m.leaf(*shape), "momentum": m.leaf(*shape), "lambda_param": m.choice((0, 5e-3, 0.5)), "group": None}


def _tico(m: Maker) -> dict:
    n, d = m.choice((2, 3, 17)), m.choice((1, 4, 9))
    numbers = {"beta": m.choice((0, 0.9, 1)), "rho": m.choice((0.5, 8, 0))}
    return {"z_a": m.leaf(n, d), "z_b": m.leaf(n, d), "covariance": m.maybe(m.rows(d, d))} | numbers | {"group": None}


#: Rows that are as near to several others as to one: the gradients depend on which of them is taken.
TIED = ("denormals", "zeros", "ones", "the first row for all", "the first column for all")
CASES = [
    Case("koleo", functional.koleo, _koleo, _koleo_truth, rough=TIED),
    Case("masked_latent_loss", functional.masked_latent_loss, _masked_latent, plain.masked_latent),
    Case("mmcr", functional.mmcr, _mmcr, plain.mmcr),
    Case("tico", functional.tico, _tico, plain.tico),
]
