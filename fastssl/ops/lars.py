"""The op behind LARS: one step of all tensors of all parameter groups, two launches (norms, update).

    moco_v3   d = g + wd p;  q = eta |p| / |d|;                     mu <- m mu + q d;        p <- p - lr mu
    larc      d = g + wd p;  q = eta |p| / (|g| + wd |p| + eps);    mu <- m mu + q d;        p <- p - lr mu
    paper     d = g + wd p;  q as in larc;                          mu <- m mu + lr q d;     p <- p - mu

    nesterov  p moves by s + m mu instead of mu, s being what was added to m mu
    clip      larc only: min(q / lr, 1) for q

The arithmetic is in float32 (float64 for float64). Norms and q are in float64 and are added in an order that does not depend on
the number of threads. q = 1 for a tensor that is not adapted, and where a norm is not above 0 (0 or NaN); there larc leaves the
decay out too, as LARC does.

An element costs 28 bytes in float32: 8 for the norms (read p and g), 20 for the update (read p, g, mu, write p, mu); and 4 + 6
FLOP. An average adds 8 bytes, a 16-bit shadow 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.checks import check_choice, check_flag, check_number

from ._lists import as_list, check_lists, check_scalars
from ._register import define_op
from ._steps import for_each_tensor, run_in_place, step_scalar, with_copies
from .ema import share

FORMS = ("moco_v3", "larc", "paper")

_lars = define_op(
    "lars_",
    "(Tensor(a!)[] params, Tensor(b!)[] momenta, Tensor[] grads, Tensor(c!)[] ema, Tensor(d!)[] shadow, Tensor(e!)[] ema_shadow, "
    "float[] weight_decay, int[] adapt, int form, float lr, Tensor? lr_scalar, float momentum, float trust_coefficient, float eps, "
    "bool nesterov, bool clip, float ema_momentum, Tensor? ema_momentum_scalar) -> ()",
    lambda *_: None,
    "lars",
)


def lars_(
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    momenta: Tensor | Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.9,
    weight_decay: float | Sequence[float] = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    form: str = "moco_v3",
    adapt: bool | Sequence[bool] = True,
    nesterov: bool = False,
    clip: bool = False,
    ema: Tensor | Sequence[Tensor] | None = None,
    ema_momentum: float | Tensor = 0.999,
    shadow: Tensor | Sequence[Tensor] | None = None,
    ema_shadow: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """One step of layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017) in place, for all tensors at once.

    The equations of the three published forms stand at the top of this file. "moco_v3" is that of MoCo v3, Barlow Twins, VICReg and
    DINO; "larc" that of apex LARC, timm, lightly and solo-learn; "paper" is algorithm 1 of the paper (also Paddle and ROCm's
    FusedLARS), whose momentum holds the learning rate. They differ in where weight decay enters the norm, in eps, and, when the
    rate changes, in the momentum.

    Args:
        params: tensors of any shapes, float32, bfloat16, float16 or float64, changed in place. One tensor counts as a list of one.
        grads: as many, of the same shapes and on the same device; left as they are. Dtypes may differ (float64 stands with float64
            only). NaN and infinities reach ``params``.
        momenta: as many, of the same shapes, changed in place; zeros before the first step.
        lr: number of at least 0, or a one-element float tensor on the device of ``params``, which a captured CUDA graph reads anew
            at each replay, or on the CPU.
        momentum: m, in [0, 1).
        weight_decay: wd, a number or one for each tensor.
        trust_coefficient: eta.
        eps: of "larc" and "paper".
        form: "moco_v3", "larc" or "paper".
        adapt: whether q is applied, a bool or one for each tensor; the decay is applied either way.
        nesterov: needs momentum above 0.
        clip: LARC's bound on the rate; needs form "larc".
        ema: tensors of the shapes of ``params`` that move towards their new values, bit-equal to ``ema_update_`` afterwards.
        ema_momentum: the share of ``ema`` that is kept: number in [0, 1] or one-element float tensor, as ``lr``.
        shadow: tensors that receive the new ``params``, rounded to their own dtype: the bfloat16 model of float32 parameters.
        ema_shadow: tensors that receive the new ``ema``; needs ``ema``.

    Raises:
        TypeError, ValueError: naming the argument; nothing is changed then.
    """
    lists, copies = (params, grads, momenta), (ema, ema_momentum, shadow, ema_shadow)
    options = (momentum, trust_coefficient, eps, form, nesterov, clip)
    step_lars("lars_", lists, copies, lr, weight_decay, adapt, options)


def step_lars(op: str, lists: tuple, copies: tuple, lr, weight_decay, adapt, options: tuple) -> None:
    """``lars_`` for the public function or class ``op``: (params, grads, momenta), (ema, its momentum, shadow, ema_shadow)."""
    momentum, trust_coefficient, eps, form, nesterov, clip = options
    check_choice(op, "form", form, FORMS)
    check_rates(op, momentum, trust_coefficient, eps, form, nesterov, clip)
    ema, ema_momentum, shadow, ema_shadow = copies
    params, grads, momenta = lists
    given = with_copies(op, {"params": params, "momenta": momenta}, ema, shadow, ema_shadow)
    with torch.no_grad():
        written, read, as_they_are = check_lists(op, given, {"grads": grads}, whole_tensors)
        device, count = written["params"][0].device, len(written["params"])
        check_scalars(op, "params", written["params"][0], lr=lr, ema_momentum=ema_momentum)
        options = (
            for_each_tensor(op, "weight_decay", weight_decay, count, float),
            for_each_tensor(op, "adapt", adapt, count, bool),
            FORMS.index(form),
            *step_scalar(op, "lr", lr, device, 0.0),
            float(momentum),
            float(trust_coefficient),
            float(eps),
            nesterov,
            clip,
            *share(op, "ema_momentum", ema_momentum, device),
        )
        run_in_place(_lars, written, read, as_they_are, *options)


def check_rates(op: str, momentum: float, trust_coefficient: float, eps: float, form: str, nesterov: bool, clip: bool) -> None:
    """Refuses numbers out of range and options that do not go together."""
    check_number(op, "momentum", momentum, 0.0, 1.0)
    check_number(op, "trust_coefficient", trust_coefficient, 0.0)
    check_number(op, "eps", eps, 0.0)
    for name, value in (("nesterov", nesterov), ("clip", clip)):
        check_flag(op, name, value)
    if nesterov and momentum == 0:
        raise ValueError(f"{op}: nesterov needs momentum above 0, got {momentum}")
    if clip and form != "larc":
        raise ValueError(f"{op}: clip needs form 'larc', got {form!r}")


def whole_tensors(op: str, name: str, value):
    """The argument, a list in place of another iterable; a DTensor counts as its local tensor where that is the whole one."""
    if not isinstance(value, Tensor):
        value = as_list(op, name, value, local=False)
    for tensor in value if isinstance(value, list) else [value]:
        if type(tensor) in (Tensor, torch.nn.Parameter) or not hasattr(tensor, "placements"):
            continue
        if not all(placement.is_replicate() for placement in tensor.placements):
            why = "the norm of a shard is not that of the tensor; AdamW takes shards"
            raise NotImplementedError(f"{op}: {name} must be whole on every device, got a DTensor of {tensor.placements}: {why}")
    return value
