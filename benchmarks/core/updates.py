"""The updates that are measured: EMA, queue, MoCo's step, LARS, AdamW; shapes, constants and targets of each.

The limit is the time in which this machine's memory moves ``case.bytes(shape)``; that of MoCo's step is the time of 2U in its
matrix product, as for its loss. A float32 parameter costs EMA 12 bytes (2 more with a bfloat16 shadow), LARS and AdamW 28, AdamW
with EMA 36. "eager" is the plain PyTorch form of ``fastssl/testing/updates.py``, which the title names. Imports ``workloads``.
"""

import torch

from benchmarks.core.workloads import AS_FAST, Shape, Target, Update, faster
from fastssl.testing.updates import UPDATE_CASES

_VIT, _LARGE, _RESNET, _TINY = ("vit_b16",), ("vit_l16",), ("resnet50",), ("tiny",)
_LARS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4, "trust_coefficient": 0.001, "eps": 1e-8}
_ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.05}
_QUEUES = ((256, 65536, 128), (1024, 65536, 128))


def _model_update(
    name: str, title: str, constants: dict, shapes: tuple[Shape, ...], gpu=None, targets=(), gpu_targets=()
) -> Update:
    return Update(
        UPDATE_CASES[name], title, "model", constants, shapes, (_TINY,), gpu or shapes, targets=targets, gpu_targets=gpu_targets
    )


def _at_limit(shape: Shape, times: float, launches: int) -> tuple[Target, ...]:
    return Target(shape, "times_limit", times), Target(shape, "launches", launches)


UPDATES = {
    workload.name: workload
    for workload in (
        _model_update(
            "ema",
            "EMA of all parameters (eager: _foreach_lerp_)",
            {"momentum": 0.999},
            (_VIT, _RESNET),
            (_LARGE, _RESNET, _VIT),
            (Target(_VIT, "not_slower", AS_FAST, "eager"), *faster(_VIT, loop=1.6, moco_repository=2.3)),
            (*_at_limit(_LARGE, 1.1, 1), *_at_limit(_RESNET, 1.1, 1)),
        ),
        _model_update(
            "ema_shadow",
            "EMA with a bfloat16 copy (eager: _foreach_lerp_, then _foreach_copy_)",
            {"momentum": 0.999},
            (_VIT,),
            targets=(Target(_VIT, "not_slower", AS_FAST, "eager"),),
            gpu_targets=_at_limit(_VIT, 1.1, 1),
        ),
        Update(
            UPDATE_CASES["queue_push"],
            "Push of keys onto a queue (eager: index_copy_, no host sync)",
            "N x K x D",
            {},
            shapes=_QUEUES[:1],
            quick=((8, 40, 16),),
            gpu=_QUEUES[:1],
            targets=(Target(_QUEUES[0], "not_slower", AS_FAST, "lightly"),),
            gpu_targets=(Target(_QUEUES[0], "launches", 1, dtype="bfloat16"),),
            dtypes=(torch.float32, torch.bfloat16, torch.float16),
        ),
        Update(
            UPDATE_CASES["moco_step"],
            "MoCo: normalise, loss, push, backward (eager: the same without host sync)",
            "N x K x D",
            {"temperature": 0.07},
            shapes=_QUEUES,
            quick=((8, 40, 16),),
            gpu=_QUEUES,
            targets=tuple(target for shape in _QUEUES for target in faster(shape, moco_repository=4.5)),
            product=lambda s: s,
            dtypes=(torch.float32, torch.bfloat16),
        ),
        _model_update(
            "lars",
            "LARS as in MoCo v3 (eager: one tensor at a time)",
            _LARS,
            (_RESNET,),
            gpu_targets=(Target(_RESNET, "ms", 0.26), Target(_RESNET, "launches", 2)),
        ),
        _model_update(
            "larc",
            "LARS as in LARC (eager: one tensor at a time)",
            _LARS,
            (_RESNET,),
            gpu_targets=(Target(_RESNET, "ms", 0.26), Target(_RESNET, "launches", 2)),
        ),
        _model_update(
            "adamw",
            "AdamW (eager: torch.optim.AdamW, foreach)",
            _ADAMW,
            (_VIT,),
            targets=(Target(_VIT, "not_slower", AS_FAST, "fused"),),
            gpu_targets=_at_limit(_VIT, 1.1, 1),
        ),
        _model_update(
            "adamw_ema",
            "AdamW, then EMA of the parameters (eager: torch.optim.AdamW, foreach; _foreach_lerp_)",
            _ADAMW | {"ema_momentum": 0.999},
            (_VIT,),
            targets=(Target(_VIT, "not_slower", AS_FAST, "fused"),),
            gpu_targets=_at_limit(_VIT, 1.1, 1),
        ),
    )
}
