"""The losses of a batch's statistics that are measured: Barlow Twins, VICReg and Gram anchoring, forward and backward.

    U = 2 N^2 D FLOP       Barlow Twins and VICReg take 4U with N x N matrices; eager, with D x D ones, 6 N D^2 and 12 N D^2
    Gram anchoring of B images of N patches: 3U B, of which the teacher's matrix is one, and 4U B in eager PyTorch

Products are of float32 whatever the inputs are: at torch's default precision a fifteenth of the rate of 16 bits on an H100 or H200.
Imports ``workloads``.
"""

import torch

from benchmarks.core.workloads import Plan, Shape, Workload, faster
from fastssl import functional
from fastssl.testing import redundancy
from fastssl.testing.cases import CASES, OpCase
from fastssl.testing.inputs import Inputs, randn, two_views

_SIXTEEN_BITS = 15.0  # times the rate of float32 products
_WIDE, _MANY, _PATCHES = (256, 8192), (2048, 8192), (32, 256, 1024)


def _square(shape: Shape) -> tuple[int, int, int]:
    return shape[0], shape[0], shape[1]


def _both_sides(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Patches (B, N, D) of student and teacher."""
    return {"student": randn(shape, dtype, device, seed), "teacher": randn(shape, dtype, device, seed + 1)}


GRAM = OpCase(
    "gram_loss",
    _both_sides,
    functional.gram_loss,
    redundancy.gram_loss,
    flops=lambda s: 3 * 2 * s[0] * s[1] ** 2 * s[2],
    bytes=lambda s, itemsize: 3 * s[0] * s[1] * s[2] * itemsize,
    shapes=((2, 9, 16), (3, 20, 5)),
)
#: The case of the table forces the form; here the rule chooses it.
VICREG = OpCase(
    "vicreg",
    two_views,
    functional.vicreg,
    redundancy.vicreg,
    flops=CASES["vicreg"].flops,
    bytes=CASES["vicreg"].bytes,
    shapes=CASES["vicreg"].shapes,
)


def _statistics(case: OpCase, title: str, constants: dict[str, float], times: float) -> Workload:
    return Workload(
        case,
        title,
        "N x D",
        constants,
        shapes=(_WIDE,),
        rows=lambda s: s[0],
        product=_square,
        quick=((32, 128),),
        scale=(_MANY,),
        gpu=(_WIDE,),
        targets=faster(_WIDE, eager=times, lightly=times),
        gpu_plan=Plan((), chunks=(4 * _SIXTEEN_BITS, 0)),
        largest={"cpu": 512, "cuda": 4096},
    )


REDUNDANCY = {
    workload.name: workload
    for workload in (
        _statistics(CASES["barlow_twins"], "Barlow Twins, forward + backward (eager: D x D)", {"lambda_param": 5e-3}, 8),
        _statistics(
            VICREG, "VICReg, forward + backward (eager: D x D)", {"lambda_param": 25.0, "mu_param": 25.0, "nu_param": 1.0}, 8
        ),
        Workload(
            GRAM,
            "Gram anchoring (DINOv3), a matrix for each image, forward + backward",
            "B x N x D",
            {},
            shapes=(_PATCHES,),
            rows=lambda s: s[0] * s[1],
            product=lambda s: (s[0] * s[1], s[1], s[2]),
            quick=((2, 16, 32),),
            gpu=(_PATCHES,),
            gpu_plan=Plan((), chunks=(3 * _SIXTEEN_BITS, 0)),
            constant_inputs=("teacher",),
        ),
    )
}
