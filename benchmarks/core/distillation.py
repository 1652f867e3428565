"""The steps of soft targets over prototypes that are measured, forward and backward: shapes and targets of each.

    N rows or B images, K prototypes; 10 crops of which the teacher sees 2; temperatures 0.1 and 0.04; 3 iterations of Sinkhorn

The limit is that of the updates, with the bytes of one reading of both sides, of one more of the teacher for each iteration, and of
the gradient. A GPU reads both sides twice for the loss, the second time partly out of L2, and the teacher twice in each step of
Sinkhorn behind the first, which ``gpu_times`` counts. "eager" is the plain PyTorch form of
``fastssl/testing/distilled_updates.py``. Imports ``workloads``.
"""

import torch

from benchmarks.core.workloads import Shape, Target, Update, faster
from fastssl.testing.distilled_updates import DISTILLED_CASES

_BOTH = (torch.float32, torch.bfloat16)
_ROWS, _CROPS = (512, 65536), (64, 65536)


def _work(
    name: str, title: str, axes: str, shape: Shape, gpu: Shape, targets: tuple[Target, ...], gpu_times: float, gpu_ms: float
) -> Update:
    return Update(
        DISTILLED_CASES[name],
        title,
        axes,
        {},
        shapes=(shape,),
        quick=((8, 300),),
        gpu=(gpu,),
        targets=targets,
        gpu_targets=(Target(gpu, "ms", gpu_ms, dtype="bfloat16"),),
        dtypes=_BOTH,
        gpu_times=gpu_times,
    )


DISTILLATION = {
    workload.name: workload
    for workload in (
        _work(
            "soft_targets_sinkhorn",
            "Sinkhorn and soft cross-entropy (as in iBOT and SwAV; forward + backward)",
            "N x K",
            _ROWS,
            (4096, 65536),
            (*faster(_ROWS, dinov2_style=3), Target(_ROWS, "peak_mb", 150)),
            gpu_times=9.5 / 6,
            gpu_ms=1.25,
        ),
        _work(
            "soft_targets_crops",
            "DINO's loss of 2 + 8 crops with a centre (forward + backward)",
            "B x K",
            _CROPS,
            (64, 65536),
            faster(_CROPS, dinov2_style=3),
            gpu_times=29 / 22,
            gpu_ms=0.1,
        ),
        _work(
            "soft_targets_given",
            "Soft cross-entropy against given probabilities (forward + backward)",
            "N x K",
            (512, 32768),
            (4096, 32768),
            faster((512, 32768), eager=3),
            gpu_times=1.1,
            gpu_ms=0.26,
        ),
    )
}
