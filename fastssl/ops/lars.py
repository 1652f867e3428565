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
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from fastssl.checks import check_choice, check_flag, check_number

from ._lists import as_list, check_lists, check_scalars, run_in_place
from ._register import define_op
from ._steps import EMA_MOMENTUM, Copies, for_each_tensor, step_scalar, with_copies
from .ema import share

FORMS = ("moco_v3", "larc", "paper")

_lars = define_op(
    "lars_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, float lr, Tensor? lr_scalar, float momentum, "
    "float[] weight_decay, float trust_coefficient, float eps, int form, int[] adapt, bool nesterov, bool clip, Tensor(c!)[] ema, "
    "float ema_momentum, Tensor? ema_momentum_scalar, Tensor(d!)[] shadow, Tensor(e!)[] ema_shadow) -> ()",
    lambda *_: None,
    "lars",
)


class LarsRule(NamedTuple):
    """What the tensors of a call share beside the learning rate; the arguments of these names of ``lars_``."""

    momentum: float
    trust_coefficient: float
    eps: float
    form: str
    nesterov: bool
    clip: bool


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
    **copies: Unpack[Copies],
) -> None:
    """Takes one step of layer-wise adaptive rate scaling in place, for all tensors at once (You, Gitman, Ginsburg 2017).

    There are three published forms, with p a parameter, g its gradient and mu its momentum:

        moco_v3   d = g + wd p;  q = eta |p| / |d|;                     mu <- m mu + q d;        p <- p - lr mu
        larc      d = g + wd p;  q = eta |p| / (|g| + wd |p| + eps);    mu <- m mu + q d;        p <- p - lr mu
        paper     d = g + wd p;  q as in larc;                          mu <- m mu + lr q d;     p <- p - mu

    "moco_v3" is that of MoCo v3, Barlow Twins, VICReg and DINO; "larc" is that of apex LARC, timm, lightly and solo-learn;
    "paper" is algorithm 1 of the paper (also Paddle and ROCm's FusedLARS), whose momentum holds the learning rate.

    Args:
        params: Tensors of any shapes, float32, bfloat16, float16 or float64, which are changed in place. One tensor counts as a
            list of one.
        grads: As many tensors of the same shapes on the same device, which are left as they are. Their dtypes may differ from
            those of ``params``, but float64 goes with float64 only. NaN and infinities reach ``params``.
        momenta: As many tensors of the same shapes, which are changed in place; zeros before the first step.
        lr: A number of at least 0, or a one-element float tensor on the device of ``params`` or on the CPU. A captured CUDA graph
            reads a tensor on the device anew at each replay.
        momentum: m, in [0, 1).
        weight_decay: wd, a number of at least 0 or one for each tensor.
        trust_coefficient: eta, at least 0.
        eps: The eps of "larc" and "paper", at least 0.
        form: "moco_v3", "larc" or "paper".
        adapt: Whether q is applied (else q = 1), a bool or one for each tensor; the decay is applied either way.
        nesterov: Whether to use Nesterov's momentum; needs momentum above 0.
        clip: Whether to use LARC's min(q / lr, 1); needs form "larc".

    Keyword Args:
        ema: Tensors of the shapes of ``params`` that move towards their new values, with the bits of ``ema_update_`` afterwards.
        ema_momentum: The share of ``ema`` that is kept, 0.999 by default: a number in [0, 1] or a one-element float tensor, as
            ``lr``.
        shadow: Tensors that receive the new ``params``, rounded to their own dtype, such as the bfloat16 model of float32
            parameters.
        ema_shadow: Tensors that receive the new ``ema``; needs ``ema``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. Nothing has been changed then.
        NotImplementedError: A tensor is a sharded DTensor, whose norm would be that of a shard.

    Examples:
        >>> import torch
        >>> from fastssl.functional import lars_
        >>> param, grad, momentum = torch.ones(2, 2), torch.ones(2, 2), torch.zeros(2, 2)
        >>> lars_(param, grad, momentum, lr=0.5, trust_coefficient=0.25)
        >>> [round(each, 4) for each in param[0].tolist()]
        [0.875, 0.875]
    """
    rule = LarsRule(momentum, trust_coefficient, eps, form, nesterov, clip)
    step_lars("lars_", (params, grads, momenta), copies, lr, weight_decay, adapt, rule)


def step_lars(op: str, lists: tuple, copies: Copies, lr, weight_decay, adapt, rule: LarsRule) -> None:
    """``lars_`` for the public function or class ``op``, with ``lists`` (params, grads, momenta)."""
    check_choice(op, "form", rule.form, FORMS)
    check_rates(op, *rule)
    params, grads, momenta = lists
    given = with_copies(op, {"params": params, "momenta": momenta}, copies)
    with torch.no_grad():
        written, read, as_they_are = check_lists(op, given, {"grads": grads}, whole_tensors)
        first, count = written["params"][0], len(written["params"])
        ema_momentum = copies.get("ema_momentum", EMA_MOMENTUM)
        check_scalars(op, "params", first, lr=lr, ema_momentum=ema_momentum)
        decays = for_each_tensor(op, "weight_decay", weight_decay, count, float)
        adapts = for_each_tensor(op, "adapt", adapt, count, bool)
        rate, kept = step_scalar(op, "lr", lr, first.device, 0.0), share(op, "ema_momentum", ema_momentum, first.device)

        def launch(lists: dict[str, list[Tensor]]) -> None:
            _lars(
                lists["params"],
                lists["grads"],
                lists["momenta"],
                *rate,
                float(rule.momentum),
                decays,
                float(rule.trust_coefficient),
                float(rule.eps),
                FORMS.index(rule.form),
                adapts,
                rule.nesterov,
                rule.clip,
                lists.get("ema", []),
                *kept,
                lists.get("shadow", []),
                lists.get("ema_shadow", []),
            )

        run_in_place(launch, written, read, as_they_are)


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
    """The argument, as a list where it was another iterable; a DTensor counts as its local tensor where that is the whole one."""
    if not isinstance(value, Tensor):
        value = as_list(op, name, value, local=False)
    for tensor in value if isinstance(value, list) else [value]:
        if type(tensor) in (Tensor, torch.nn.Parameter) or not hasattr(tensor, "placements"):
            continue
        if not all(placement.is_replicate() for placement in tensor.placements):
            why = "the norm of a shard is not that of the tensor; AdamW takes shards"
            raise NotImplementedError(f"{op}: {name} must be whole on every device, got a DTensor of {tensor.placements}: {why}")
    return value
