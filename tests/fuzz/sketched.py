"""SIGReg, LeJEPA's loss and VISReg, with random directions that are the same in the truth: those of the same seed."""

import torch
from torch import Tensor

from fastssl import functional
from fastssl.reference.unit_columns import unit_columns
from fastssl.testing import sketched

from .loss_truths import wide
from .table import Case, Maker


def _rows(m: Maker, views: bool, least: int = 1) -> Tensor:
    shape = (m.choice((least, 3, 20)), m.choice((1, 4, 9)))
    return m.leaf(m.choice((1, 2, 3)), *shape) if views or m.random() < 0.5 else m.leaf(*shape)


def _directions(m: Maker, z: Tensor) -> dict:
    kind = m.choice(("seed", "seed", "tensor", "given"))
    given = torch.nn.functional.normalize(m.rows(z.shape[-1], 5).double(), dim=0).to(z.dtype) if kind == "given" else None
    seed = m.randrange(2**40)
    return {
        "slices": m.choice((1, 7, 40)),
        "directions": given,
        "generator": None,
        "seed": {"seed": seed, "tensor": torch.tensor(seed), "given": None}[kind],
        "group": None,
    }


def _sigreg(m: Maker, views: bool = False) -> dict:
    z = _rows(m, views)
    return {"z": z, "knots": m.choice((2, 5, 17)), "t_max": m.choice((1, 3.0, 7.5))} | _directions(m, z)


def _lejepa(m: Maker) -> dict:
    made = _sigreg(m, True)
    return made | {"global_views": m.choice((None, 1)), "lambda_param": m.choice((0, 0.05, 1.0))}


def _visreg(m: Maker) -> dict:
    z = _rows(m, True, 2)
    return _directions(m, z) | {
        "z": z,
        "global_views": m.choice((None, 1)),
        "lambda_param": m.choice((0, 0.9, 1.0)),
        "weights": m.choice(((1.0, 1.0, 1.0), (0.5, 0, 2.0))),
        "eps": m.choice((1e-4, 0.1)),
        "return_terms": m.random() < 0.3,
    }


def _columns(z: Tensor, slices, directions, seed, generator) -> Tensor:
    """The directions of a call; new ones without the rounding to the dtype of its rows."""
    if directions is not None:
        return wide(directions).to(wide(z).dtype)
    if seed is None:
        state = (torch.default_generator if generator is None else generator).get_state()
        seed = torch.randint(-(2**63), 2**63 - 1, (), generator=torch.Generator().set_state(state))
    seed = seed if isinstance(seed, Tensor) else torch.tensor(int(seed))
    return unit_columns(seed.reshape(()), z.shape[-1], int(slices), torch.float64).to(wide(z).dtype)


def sigreg(z, slices=1024, knots=17, t_max=3.0, directions=None, generator=None, seed=None, group=None):
    return sketched.sigreg(wide(z), _columns(z, slices, directions, seed, generator), int(knots), float(t_max))


def lejepa_loss(z, global_views=None, lambda_param=0.05, **how):
    error = (wide(z) - wide(z)[:global_views].mean(0)).square().mean()
    return lambda_param * sigreg(z, **how) + (1.0 - lambda_param) * error


def visreg(z, global_views, lambda_param, weights, slices, eps, directions, generator, seed, group, return_terms):
    found = sketched.visreg_terms(wide(z), _columns(z, slices, directions, seed, generator), global_views, eps)
    pred, scale, shape, center = found
    total = weights[0] * scale + weights[1] * shape + weights[2] * center
    total = (1 - lambda_param) * pred + lambda_param * total
    return (total, *found) if return_terms else total


#: Phases of rows at 1e17 have no digits left, and one rounding of large rows is a turn.
HUGE = ("huge", "large", "t_max: odd")
CASES = [
    Case("sigreg", functional.sigreg, _sigreg, sigreg, rough=HUGE),
    Case("lejepa_loss", functional.lejepa_loss, _lejepa, lejepa_loss, rough=HUGE),
    Case("visreg", functional.visreg, _visreg, visreg, rough=("huge", "ones", "zeros", "the first row", "eps: odd")),
]
