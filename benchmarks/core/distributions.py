"""The losses of an even distribution that are measured: SIGReg and VISReg, forward and backward.

    V = 8 views of N samples of width D, S directions, which are given;     U = 2 V N D S FLOP, one product z A

SIGReg takes 3U, two products each of which makes the projections and one back; eager, which stores them, 2U. VISReg takes 2U and
sorts. On a GPU the elements decide: about 135 instructions for each of V N S in the forward and 100 in the backward of SIGReg, on
128 lanes of a multiprocessor; VISReg sorts there with torch. Imports ``workloads``.
"""

from dataclasses import dataclass

import torch

from benchmarks.core.rates import Rates
from benchmarks.core.workloads import STEP_MS, Plan, Shape, Target, Workload, faster
from fastssl import functional
from fastssl.testing import sketched
from fastssl.testing.cases import OpCase
from fastssl.testing.inputs import Inputs, randn

VIEWS = 8
_SHAPE, _WIDE = (256, 128, 1024), (256, 128, 4096)
_MATRIX_FLOP_PER_CLOCK = 4096 / 128  # of the matrix units, for each lane


@dataclass(frozen=True)
class Elements(Plan):
    """A plan whose time is that of ``instructions`` for each projection, and of ``chunks[0]`` products."""

    instructions: float = 0.0

    def ms(self, product: tuple[int, int, int], sweep_flops: float, rates: Rates) -> float:
        n, m, _ = product
        lanes = rates.matrix_flop_per_s / _MATRIX_FLOP_PER_CLOCK  # instructions a second
        return 1e3 * (n * m * self.instructions / lanes + self.chunks[0] * sweep_flops / rates.flop_per_s) + STEP_MS


def _given(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """z (V, N, D) and directions (D, S)."""
    n, d, s = shape
    columns = torch.nn.functional.normalize(randn((d, s), torch.float64, "cpu", seed + 1), dim=0)
    return {"z": randn((VIEWS, n, d), dtype, device, seed), "directions": columns.to(dtype).to(device)}


def _visreg(z, directions):
    return functional.visreg(z, global_views=1, directions=directions)


def _eager_visreg(z, directions):
    pred, scale, shape, center = sketched.visreg_terms(z.float() if z.dtype != torch.float64 else z, directions, 1)
    return 0.1 * pred + 0.9 * (scale + shape + center)


def _workload(name: str, title: str, ours, eager, products: int, shape: Shape, **how) -> Workload:
    case = OpCase(
        name,
        _given,
        ours,
        eager,
        flops=lambda s: products * 2.0 * VIEWS * s[0] * s[1] * s[2],
        bytes=lambda s, itemsize: (3 * VIEWS * s[0] + 2 * s[2]) * s[1] * itemsize,
        shapes=((9, 16, 20), (20, 5, 7)),
    )
    return Workload(
        case,
        title,
        "N x D x S, 8 views",
        {},
        shapes=(shape,),
        rows=lambda s: VIEWS * s[0],
        product=lambda s: (VIEWS * s[0], s[2], s[1]),
        quick=((32, 16, 64),),
        gpu=(shape,),
        constant_inputs=("directions",),
        **how,
    )


DISTRIBUTIONS = {
    workload.name: workload
    for workload in (
        _workload(
            "sigreg",
            "SIGReg (LeJEPA), 17 knots, forward + backward",
            lambda z, directions: functional.sigreg(z, directions=directions),
            sketched.sigreg,
            3,
            _SHAPE,
            targets=(*faster(_SHAPE, eager=10, lightly=10), Target(_SHAPE, "times_less_memory", 50, "eager")),
            gpu_targets=(Target(_SHAPE, "ms", 0.04, dtype="bfloat16"),),
            gpu_plan=Elements((), (3, 0), instructions=235),
        ),
        _workload(
            "visreg",
            "VISReg, forward + backward",
            _visreg,
            _eager_visreg,
            2,
            _WIDE,
            targets=faster(_WIDE, eager=4),
            gpu_plan=Elements((), (2, 0), instructions=500),
        ),
    )
}
