"""Rows of the losses of neighbours and of latent targets."""

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


CASES = [Case("koleo", functional.koleo, _koleo, _koleo_truth)]
