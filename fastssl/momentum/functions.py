"""Momentum updates as functions: of the parameters of two modules, and of the lists of torch's ``AveragedModel``."""

import warnings
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastssl.checks import FLOATS
from fastssl.ops._lists import as_list
from fastssl.ops.ema import share

from ._tensors import HALF, average_lists, check_match, check_module, find

_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.no_grad()
def update_momentum(model: nn.Module, model_ema: nn.Module, m: float | Tensor) -> None:
    """Moves the parameters of a module towards those of another in one launch: ``model_ema <- m * model_ema + (1 - m) * model``.

    This is lightly's function and the momentum update of MoCo (He et al. 2020, eq. 2). Parameters are paired in the order of
    ``parameters()``, tied ones once; frozen parameters and those without a gradient move too. Buffers are left alone, and integer
    parameters are copied. The update is in place: the parameters stay the same objects.

    Args:
        model: Any module; its parameters may have any shapes, and other float dtypes than their averages.
        model_ema: A module of as many parameters, of the same shapes on the same devices. Half precision loses nearly every step,
            which a warning says once.
        m: The share that is kept, in [0, 1]: a number or a one-element float tensor, see ``ema_update_``.

    Raises:
        TypeError, ValueError: An argument is wrong, or a parameter of the two differs; the message names it. Nothing has been
            changed then.

    Examples:
        >>> import torch
        >>> from fastssl.momentum import update_momentum
        >>> student, teacher = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.ones_(student.weight), torch.nn.init.zeros_(teacher.weight)
        >>> update_momentum(student, teacher, m=0.75)
        >>> teacher.weight.item()
        0.25
    """
    op = "update_momentum"
    check_module(op, "model", model)
    check_module(op, "model_ema", model_ema)
    mine: list[Tensor]
    theirs: list[Tensor]
    if torch.compiler.is_compiling():
        mine, theirs, new = list(model_ema.parameters()), list(model.parameters()), True
    else:
        ours, other = find(model_ema), find(model)
        mine, theirs, new = ours.params, other.params, ours.partner() is not other
    if new:
        check_match(op, "parameter", list(model.named_parameters()), list(model_ema.named_parameters()))
    if not any(t.dtype in FLOATS for t in mine):
        raise ValueError(f"{op}: model must have at least one float parameter, got none")
    if new and not torch.compiler.is_compiling():
        ours.partner = weakref.ref(other)
        _warn_of_half(op, model_ema, mine)
    average_lists(op, ("model_ema", "model", "m"), mine, theirs, m, "lerp")


def _warn_of_half(op: str, module: nn.Module, tensors: Sequence[Tensor]) -> None:
    if module not in _WARNED and any(t.dtype in HALF for t in tensors):
        _WARNED.add(module)
        dtype = next(t.dtype for t in tensors if t.dtype in HALF)
        ways = 'EMA(model, dtype=...) averages in float32, EMA(model, rounding="stochastic") moves on average'
        warnings.warn(f"{op}: an average in {dtype} hardly moves, its steps are below half a unit of it; {ways}", stacklevel=4)


def get_ema_multi_avg_fn(decay: float | Tensor = 0.999) -> Callable[[Sequence[Tensor], Sequence[Tensor], object], None]:
    """Averages for ``torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=...)``, with the bits of torch's own function.

    Integer tensors (``use_buffers=True``) are copied; torch's function truncates ``num_batches_tracked`` to 0 or lets it lag.

    Args:
        decay: The share that is kept, in [0, 1]: a number or a one-element float tensor, see ``ema_update_``.

    Returns:
        ``fn(averaged, current, num_averaged)``, which takes two lists of as many tensors of any equal shapes on one device. Float
        dtypes may differ. ``averaged`` is changed in place.

    Raises:
        TypeError, ValueError: An argument is wrong, here or in the function; the message names it.

    Examples:
        >>> import torch
        >>> from fastssl.momentum import get_ema_multi_avg_fn
        >>> averaged = [torch.zeros(2)]
        >>> get_ema_multi_avg_fn(0.75)(averaged, [torch.ones(2)], num_averaged=1)
        >>> averaged
        [tensor([0.2500, 0.2500])]
    """
    op = "get_ema_multi_avg_fn"
    share(op, "decay", decay, decay.device if isinstance(decay, Tensor) else torch.device("cpu"))

    @torch.no_grad()
    def ema_update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: object) -> None:
        averaged, current = as_list(op, "averaged", averaged), as_list(op, "current", current)
        if len(averaged) != len(current):
            raise ValueError(f"{op}: averaged and current must hold as many tensors, got {len(averaged)} and {len(current)}")
        average_lists(op, ("averaged", "current", "decay"), averaged, current, decay, "lerp")

    return ema_update
