"""Rows of Barlow Twins, VICReg and the losses of Gram matrices."""

import torch

from fastssl import functional
from fastssl.testing import redundancy as plain

from .table import Case, Maker

FORMS = ("auto", "gram", "covariance")


def _views(m: Maker, *more: int) -> dict:
    shape = m.choice((2, 3, 9)), *more, m.choice((1, 4, 17))
    return {"z0": m.leaf(*shape), "z1": m.leaf(*shape)}


def _barlow(m: Maker) -> dict:
    return _views(m) | {
        "lambda_param": m.choice((0, 5e-3, 0.5)),
        "group": None,
        "form": m.choice(FORMS),
        "eps": m.choice((1e-5, 0.1)),
    }


def _vicreg(m: Maker) -> dict:
    weights = {f"{name}_param": m.choice((0, 1.0, 25.0)) for name in ("lambda", "mu", "nu")}
    return (
        _views(m, *m.choice(((), (3,), (2, 2)))) | weights | {"eps": m.choice((1e-4, 0.1)), "group": None, "form": m.choice(FORMS)}
    )


def _gram(m: Maker) -> dict:
    front = m.choice(((1,), (5,), (2, 5), (3, 1), (4, 9)))
    removed = m.choice(("neither", "both", "teacher"))
    return {
        "student": m.leaf(*front, m.choice((1, 4, 17))),
        "teacher": m.rows(*front, m.choice((1, 4, 7))),
        "normalize": m.random() < 0.6,
        "image_level": m.random() < 0.6,
        "remove_negative": removed == "both",
        "remove_only_teacher_negative": removed == "teacher",
    }


def _cka(m: Maker) -> dict:
    front = m.choice(((2,), (5,), (2, 5), (4, 9)))
    mask = torch.rand(front, generator=m.generator) < 0.3
    return {
        "student": m.leaf(*front, m.choice((1, 4, 17))),
        "teacher": m.rows(*front, m.choice((1, 4, 7))),
        "mask": m.maybe(mask, 0.4),
        "form": m.choice(FORMS),
        "eps": m.choice((1e-6, 1e-3)),
    }


def _without_form(truth):
    """The truth, of which the form and the group are no arguments."""

    def call(form="auto", group=None, **arguments):
        return truth(**arguments)

    return call


CASES = [
    Case("barlow_twins", functional.barlow_twins, _barlow, _without_form(plain.barlow_twins)),
    Case("vicreg", functional.vicreg, _vicreg, _without_form(plain.vicreg), rough=("one huge",)),
    Case("gram_loss", functional.gram_loss, _gram, plain.gram_loss),
    Case("cka", functional.cka, _cka, _without_form(plain.cka)),
]
