"""The op behind AdamW: one step of all tensors of all parameter groups, one launch, the arithmetic of ``torch.optim.AdamW``.

    p <- p (1 - lr wd)
    m <- m + (1 - beta1)(g - m)                     as torch.lerp
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

The arithmetic is in float32 (float64 for float64); 1 - beta^t and the rates made of it are in float64.

An element costs 28 bytes in float32 (read p, g, m, v, write p, m, v) and 12 FLOP. An average adds 8 bytes, a 16-bit shadow 2.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from fastssl.checks import check_number

from ._lists import check_lists, check_scalars, run_in_place
from ._register import define_op
from ._steps import EMA_MOMENTUM, Copies, for_each_tensor, step_scalar, with_copies
from .ema import share

_adamw = define_op(
    "adamw_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, float step, Tensor? step_scalar, "
    "float lr, Tensor? lr_scalar, float beta1, float beta2, float eps, float[] weight_decay, Tensor(d!)[] ema, float ema_momentum, "
    "Tensor? ema_momentum_scalar, Tensor(e!)[] shadow, Tensor(f!)[] ema_shadow) -> ()",
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
    **copies: Unpack[Copies],
) -> None:
    """Takes one step of Adam with decoupled weight decay in place, all tensors at once (Loshchilov, Hutter 2019, algorithm 2).

    Args:
        params: Tensors of any shapes, float32, bfloat16, float16 or float64, which are changed in place. One tensor counts as a
            list of one.
        grads: As many tensors of the same shapes on the same device, which are left as they are. Their dtypes may differ from
            those of ``params``, but float64 goes with float64 only. NaN and infinities reach ``params``.
        exp_avg: m, as many tensors of the same shapes, which are changed in place; zeros before the first step.
        exp_avg_sq: v, as ``exp_avg``.
        step: t, the number of this step, from 1 on: an integer, or a one-element tensor on the device of ``params`` or on the
            CPU. A captured CUDA graph reads a tensor on the device anew at each replay.
        lr: A number of at least 0, or a one-element float tensor, as ``step``.
        betas: (beta1, beta2), both in [0, 1).
        eps: What is added to the root, at least 0.
        weight_decay: A number of at least 0 or one for each tensor.

    Keyword Args:
        ema: Tensors of the shapes of ``params`` that move towards their new values, with the bits of ``ema_update_`` afterwards.
        ema_momentum: The share of ``ema`` that is kept, 0.999 by default: a number in [0, 1] or a one-element float tensor, as
            ``lr``.
        shadow: Tensors that receive the new ``params``, rounded to their own dtype, such as the bfloat16 model of float32
            parameters.
        ema_shadow: Tensors that receive the new ``ema``; needs ``ema``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. Nothing has been changed then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import adamw_
        >>> param, grad, first, second = torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2)
        >>> adamw_(param, grad, first, second, step=1, lr=0.5, weight_decay=0.0)
        >>> [round(each, 4) for each in param.tolist()]
        [0.5, 0.5]
    """
    step_adamw("adamw_", (params, grads, exp_avg, exp_avg_sq), copies, step, lr, betas, eps, weight_decay)


def step_adamw(op: str, lists: tuple, copies: Copies, step, lr, betas, eps, weight_decay) -> None:
    """``adamw_`` for the public function or class ``op``, with ``lists`` (params, grads, exp_avg, exp_avg_sq)."""
    params, grads, exp_avg, exp_avg_sq = lists
    check_rates(op, betas, eps)
    given = with_copies(op, {"params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, copies)
    with torch.no_grad():
        written, read, as_they_are = check_lists(op, given, {"grads": grads})
        first, count = written["params"][0], len(written["params"])
        ema_momentum = copies.get("ema_momentum", EMA_MOMENTUM)
        check_scalars(op, "params", first, step=step, lr=lr, ema_momentum=ema_momentum)
        decays = for_each_tensor(op, "weight_decay", weight_decay, count, float)
        number = step_scalar(op, "step", step, first.device, 1, whole=True)
        rate, kept = step_scalar(op, "lr", lr, first.device, 0.0), share(op, "ema_momentum", ema_momentum, first.device)

        def launch(lists: dict[str, list[Tensor]]) -> None:
            _adamw(
                lists["params"],
                lists["grads"],
                lists["exp_avg"],
                lists["exp_avg_sq"],
                *number,
                *rate,
                float(betas[0]),
                float(betas[1]),
                float(eps),
                decays,
                lists.get("ema", []),
                *kept,
                lists.get("shadow", []),
                lists.get("ema_shadow", []),
            )

        run_in_place(launch, written, read, as_they_are)


def check_rates(op: str, betas: tuple[float, float], eps: float) -> None:
    """Refuses numbers out of range."""
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"{op}: betas must be two numbers (beta1, beta2), got {betas!r}")
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        check_number(op, name, beta, 0.0, 1.0)
    check_number(op, "eps", eps, 0.0)
