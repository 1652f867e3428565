"""The op behind every momentum encoder: all tensors of a module move towards those of another module, in one launch.

    lerp      e <- e + w (p - e)                w = 1 - momentum          (w >= 1/2: p - (1 - w)(p - e)), as torch.lerp
    mul_add   e <- momentum e + w p             two roundings: t = momentum e, then fma(w, p, t)

The arithmetic is in float32 (float64 for float64), and e is rounded to its dtype once. An element costs 12 bytes in float32 (read
e and p, write e), 14 with a bfloat16 shadow. The weight w is computed in double precision, because 1 - float32(0.9999) is off by
1.7e-4 of itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.checks import NUMBERS, as_python, as_scalar, check_choice, check_dense, device_scalar, shown

from ._lists import check_lists, check_scalars, run_in_place
from ._register import define_op

_ema_update = define_op(
    "ema_update_",
    "(Tensor(a!)[] ema, Tensor[] params, Tensor(b!)[] shadow, float momentum, Tensor? momentum_scalar, bool mul_add, "
    "bool stochastic, int seed, Tensor? seed_scalar) -> ()",
    lambda *_: None,
    "ema",
)


def ema_update_(
    ema: Tensor | Sequence[Tensor],
    params: Tensor | Sequence[Tensor],
    momentum: float | Tensor,
    *,
    order: str = "lerp",
    shadow: Tensor | Sequence[Tensor] | None = None,
    rounding: str = "nearest",
    seed: int | Tensor = 0,
) -> None:
    """Moves averages towards values in place: ``ema <- momentum * ema + (1 - momentum) * params``, all tensors in one launch.

    This is the update of mean teachers (Tarvainen and Valpola 2017), MoCo (He et al. 2020, eq. 2), BYOL and DINO. ``momentum`` is
    the share of ``ema`` that is *kept*, usually 0.99 to 1. The update runs without autograd; ``params`` may require gradients.

    Args:
        ema: Tensors of any shapes, float32, bfloat16, float16 or float64, which are changed in place. One tensor counts as a list
            of one.
        params: As many tensors of the same shapes on the same device. Their dtypes may differ from those of ``ema``, but float64
            goes with float64 only. Tied tensors must be passed once.
        momentum: A number in [0, 1], or a one-element float tensor on the device of ``ema`` or on the CPU. A captured CUDA graph
            reads a tensor on the device anew at each replay. A float64 tensor keeps ``1 - momentum`` exact.
        order: "lerp" gives the bits of ``torch._foreach_lerp_``; "mul_add" gives those of ``torch._foreach_mul_`` followed by
            ``torch._foreach_add_`` with alpha. Where float32(m) + float32(1 - m) is not 1, "mul_add" has a wrong fixed point.
        shadow: Tensors of the shapes of ``ema`` that receive its new values in the same pass, rounded to their own dtype, such as
            the bfloat16 teacher of a float32 average.
        rounding: "nearest", or "stochastic" for ``ema`` in bfloat16 or float16, where the nearest value is nearly always the old
            one.
        seed: The seed of stochastic rounding, a new one for each step: an integer, or a one-element int64 tensor on the device of
            ``ema``. The random bits of element i of tensor t are a function of (seed, t, i) on every device.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. Nothing has been changed then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import ema_update_
        >>> ema, params = [torch.zeros(2)], [torch.ones(2)]
        >>> ema_update_(ema, params, 0.75)
        >>> ema[0]
        tensor([0.2500, 0.2500])
    """
    update_averages("ema_update_", ema, params, momentum, order=order, shadow=shadow, rounding=rounding, seed=seed)


def update_averages(
    op: str,
    ema: Tensor | Sequence[Tensor],
    params: Tensor | Sequence[Tensor],
    momentum: float | Tensor,
    *,
    order: str = "lerp",
    shadow: Tensor | Sequence[Tensor] | None = None,
    rounding: str = "nearest",
    seed: int | Tensor = 0,
    names: tuple[str, str, str] = ("ema", "params", "momentum"),
) -> None:
    """``ema_update_`` for the public function ``op``, whose first three arguments are called ``names``."""
    check_choice(op, "order", order, ("lerp", "mul_add"))
    check_choice(op, "rounding", rounding, ("nearest", "stochastic"))
    mine, theirs, kept = names
    given = {mine: ema} if shadow is None else {mine: ema, "shadow": shadow}
    with torch.no_grad():
        written, read, as_they_are = check_lists(op, given, {theirs: params})
        device = written[mine][0].device
        check_scalars(op, mine, written[mine][0], **{kept: momentum, "seed": seed})
        number, scalar = share(op, kept, momentum, device)
        seed_number, seed_scalar = _seed(op, seed, device)
        options = (number, scalar, order == "mul_add", rounding == "stochastic", seed_number, seed_scalar)

        def launch(lists: dict[str, list[Tensor]]) -> None:
            _ema_update(lists[mine], lists[theirs], lists.get("shadow", []), *options)

        run_in_place(launch, written, read, as_they_are)


def share(op: str, name: str, value: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """Checks a share in [0, 1]; returns (number, None), or (0, tensor) where it lies on an accelerator or is being traced."""
    if isinstance(value, Tensor):
        check_dense(op, name, value)
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise ValueError(f"{op}: {name} must be a number or a one-element float tensor, got {value.dtype} {tuple(value.shape)}")
        if (scalar := device_scalar(op, name, value, device)) is not None:
            return 0.0, scalar
        value = value.item()
    elif isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{op}: {name} must be a number or a one-element float tensor, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: {name} must be in [0, 1], the share that is kept, got {shown(value)}")
    return as_scalar(value, device)


def _seed(op: str, seed: int | Tensor, device: torch.device) -> tuple[int, Tensor | None]:
    if isinstance(seed, Tensor):
        check_dense(op, "seed", seed)
        if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != device:
            got = f"{seed.dtype} {tuple(seed.shape)} on {seed.device}"
            raise ValueError(f"{op}: seed must be an integer or a one-element int64 tensor on {device}, got {got}")
        return 0, seed.detach().reshape(())
    seed = as_python(seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be an integer or a one-element int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed must fit in 64 bits, got {shown(seed)}")
    if torch.compiler.is_compiling():
        return 0, torch.zeros((), dtype=torch.int64, device=device) + seed
    return seed, None
