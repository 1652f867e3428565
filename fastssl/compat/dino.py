"""For the training script of facebookresearch/dino: the two lines of its teacher update, and the schedule of its momentum."""

import math

import numpy as np
from torch import nn

from fastssl.checks import check_number, check_whole

from ._common import average_parameters

__all__ = ["cosine_scheduler", "update_teacher"]


def update_teacher(student: nn.Module, teacher: nn.Module, m: float) -> None:
    """teacher <- m teacher + (1 - m) student for all parameters in one launch, in place; buffers stay. m in [0, 1].

    Replaces the loop ``param_k.data.mul_(m).add_((1 - m) * param_q.detach().data)``. Frozen parameters and those without gradient
    move too, as there. Either module may be wrapped in ``DistributedDataParallel``.
    """
    average_parameters("update_teacher", ("student", "teacher"), student, teacher, m)


def cosine_scheduler(
    base_value: float,
    final_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    start_warmup_value: float = 0,
) -> np.ndarray:
    """One value for each iteration, float64 (epochs niter_per_ep,): linear warm-up, then a half cosine towards ``final_value``.

    After w warm-up iterations of n, value i is ``final + (base - final) / 2 (1 + cos(pi (i - w) / (n - w)))``; the final value
    itself would be number n. ValueError unless 0 <= warmup_epochs <= epochs and niter_per_ep is at least 1.
    """
    op = "cosine_scheduler"
    for name, value in (("base_value", base_value), ("final_value", final_value), ("start_warmup_value", start_warmup_value)):
        check_number(op, name, value)
    counts = (("epochs", epochs, 1), ("niter_per_ep", niter_per_ep, 1), ("warmup_epochs", warmup_epochs, 0))
    epochs, niter_per_ep, warmup_epochs = (check_whole(op, *named) for named in counts)
    if warmup_epochs > epochs:
        raise ValueError(f"{op}: warmup_epochs must be at most epochs = {epochs}, got {warmup_epochs}")
    warmup = warmup_epochs * niter_per_ep
    steps = np.arange(epochs * niter_per_ep - warmup)
    wave = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(math.pi * steps / max(1, len(steps))))
    return np.concatenate([np.linspace(start_warmup_value, base_value, warmup), wave])
