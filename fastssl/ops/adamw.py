"""The op behind AdamW: one step of all tensors of all parameter groups, one launch, the arithmetic of ``torch.optim.AdamW``.

    p <- p (1 - lr wd)
    m <- m + (1 - beta1)(g - m)                     as torch.lerp
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

The arithmetic is in float32 (float64 for float64); 1 - beta^t and the rates made of it are in float64.

An element costs 28 bytes in float32 (read p, g, m, v, write p, m, v) and 12 FLOP. An average adds 8 bytes, a 16-bit shadow 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.checks import check_number

from ._lists import check_lists, check_scalars
from ._register import define_op
from ._steps import for_each_tensor, run_in_place, step_scalar, with_copies
from .ema import share

_adamw = define_op(
    "adamw_",
    "(Tensor(a!)[] params, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, Tensor[] grads, Tensor(d!)[] ema, Tensor(e!)[] shadow, "
    "Tensor(f!)[] ema_shadow, float[] weight_decay, float step, Tensor? step_scalar, float lr, Tensor? lr_scalar, float beta1, "
    "float beta2, float eps, float ema_momentum, Tensor? ema_momentum_scalar) -> ()",
    lambda *_: None,
    "adamw",
)


def adamw_(
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    exp_avg: Tensor | Sequence[Tensor],
    exp_avg_sq: Tensor | Sequence[Tensor],
    *,
    step: int | Tensor,
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Sequence[float] = 1e-2,
    ema: Tensor | Sequence[Tensor] | None = None,
    ema_momentum: float | Tensor = 0.999,
    shadow: Tensor | Sequence[Tensor] | None = None,
    ema_shadow: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """One step of Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2) in place, for all tensors at once.

    Args:
        params: tensors of any shapes, float32, bfloat16, float16 or float64, changed in place. One tensor counts as a list of one.
        grads: as many, of the same shapes and on the same device; left as they are. Dtypes may differ (float64 stands with float64
            only). NaN and infinities reach ``params``.
        exp_avg, exp_avg_sq: m and v, as many, of the same shapes, changed in place; zeros before the first step.
        step: t, the number of this step, from 1 on: an integer, or a one-element tensor on the device of ``params``, which a
            captured CUDA graph reads anew at each replay, or on the CPU.
        lr: number of at least 0, or a one-element float tensor, as ``step``.
        betas: (beta1, beta2), both in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: wd, a number or one for each tensor.
        ema: tensors of the shapes of ``params`` that move towards their new values, bit-equal to ``ema_update_`` afterwards.
        ema_momentum: the share of ``ema`` that is kept: number in [0, 1] or one-element float tensor, as ``lr``.
        shadow: tensors that receive the new ``params``, rounded to their own dtype: the bfloat16 model of float32 parameters.
        ema_shadow: tensors that receive the new ``ema``; needs ``ema``.

    Raises:
        TypeError, ValueError: naming the argument; nothing is changed then.
    """
    lists, copies = (params, grads, exp_avg, exp_avg_sq), (ema, ema_momentum, shadow, ema_shadow)
    step_adamw("adamw_", lists, copies, step, lr, betas, eps, weight_decay)


def step_adamw(op: str, lists: tuple, copies: tuple, step, lr, betas, eps, weight_decay) -> None:
    """``adamw_`` for the public function or class ``op``: (params, grads, exp_avg, exp_avg_sq), (ema, its momentum, shadow,
    ema_shadow)."""
    params, grads, exp_avg, exp_avg_sq = lists
    ema, ema_momentum, shadow, ema_shadow = copies
    check_rates(op, betas, eps)
    given = with_copies(op, {"params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, ema, shadow, ema_shadow)
    with torch.no_grad():
        written, read, as_they_are = check_lists(op, given, {"grads": grads})
        device, count = written["params"][0].device, len(written["params"])
        check_scalars(op, "params", written["params"][0], step=step, lr=lr, ema_momentum=ema_momentum)
        options = (
            for_each_tensor(op, "weight_decay", weight_decay, count, float),
            *step_scalar(op, "step", step, device, 1, whole=True),
            *step_scalar(op, "lr", lr, device, 0.0),
            float(betas[0]),
            float(betas[1]),
            float(eps),
            *share(op, "ema_momentum", ema_momentum, device),
        )
        run_in_place(_adamw, written, read, as_they_are, *options)


def check_rates(op: str, betas: tuple[float, float], eps: float) -> None:
    """Refuses numbers out of range."""
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"{op}: betas must be two numbers (beta1, beta2), got {betas!r}")
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        check_number(op, name, beta, 0.0, 1.0)
    check_number(op, "eps", eps, 0.0)
