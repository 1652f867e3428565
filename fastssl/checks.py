"""Checks of arguments: each raises an error that names the op, the argument, what was expected and what was given.

They run in Python before any kernel and read no tensor's data on a GPU.
"""

import math
import sys
from typing import Any

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

#: The dtypes of embeddings, images, parameters.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: The dtypes of ids, labels and indices.
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
#: The types of a number: Python's, and NumPy's scalars, because a config or a schedule may hold those.
NUMBERS = (int, float, numpy.floating, numpy.integer)
#: The types of a whole number, such as a number of rows, a size or an id.
WHOLES = (int, torch.SymInt, numpy.integer)
#: A Python integer beyond it cannot become a float.
LARGEST = sys.float_info.max


def type_name(value: object) -> str:
    """The type of a value for a message."""
    return type(value).__name__


def shown(value: object) -> str:
    """A number for a message. An integer that is too large for a float is not written out."""
    return "an integer beyond float64" if isinstance(value, int) and abs(value) > LARGEST else f"{value}"


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which sums over ``x`` are kept: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def readable(value: Tensor) -> bool:
    """Whether the host may read the data of ``value``: it is on the CPU, it is no fake tensor, and no graph is being traced."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not isinstance(value, FakeTensor)


def savable(value: Any) -> Any:
    """A copy of an inference tensor where autograd may want to save it, because autograd refuses to; anything else unchanged."""
    if not isinstance(value, Tensor) or torch.compiler.is_compiling() or not value.is_inference():
        return value
    return value.clone() if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() else value


def widest(*tensors) -> tuple:
    """Under autocast, tensors of different float dtypes in the widest of these, as autocast hands them to an op of several inputs.

    The widest is that of ``torch.promote_types``: float32 beside bfloat16 or float16 and for those two together, float64 beside
    anything. Outside autocast, and where an argument is no float tensor, all come back unchanged: the checks that follow refuse
    them.
    """
    found = [t for t in tensors if t is not None]
    if len(found) < 2 or not all(isinstance(t, Tensor) and t.dtype in FLOATS for t in found):
        return tensors
    dtype = found[0].dtype
    for t in found:
        dtype = torch.promote_types(dtype, t.dtype)
    mixed = [t for t in found if t.dtype != dtype]
    if not mixed or found[0].device.type == "meta" or not torch.is_autocast_enabled(found[0].device.type):
        return tensors
    return tuple(t if t is None else t.to(dtype) for t in tensors)


def traced(value: float | Tensor, like: Tensor) -> float | Tensor:
    """While a graph is traced, a checked number as a 0-d tensor in the ``accumulator_dtype`` of ``like``; else the value itself.

    A number that is an argument of our ops is a constant of the graph: one that follows a schedule would make a graph at each step.
    """
    if isinstance(value, Tensor) or not torch.compiler.is_compiling():
        return value
    return torch.zeros((), dtype=accumulator_dtype(like), device=like.device) + value


def check_dense(op: str, name: str, value: Any, wanted: str = "a tensor", *sizes) -> None:
    """A tensor that has one address and strides: neither sparse nor nested nor of a library's own layout.

    ``sizes`` fill the braces of ``wanted``, in the message only: a text made of a size beforehand would make that size a constant
    of a traced graph.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be {wanted.format(*sizes)}, got {type_name(value)}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{op}: {name} must be a dense tensor, got {'a nested one' if value.is_nested else value.layout}")


def check_float_dtype(op: str, name: str, value: Tensor) -> None:
    """One of ``FLOATS``."""
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def check_matrix(op: str, name: str, value: Tensor, letters: str, *, empty: bool = False) -> None:
    """A float matrix with at least one column and, unless it may be ``empty``, one row."""
    check_dense(op, name, value, f"a tensor ({letters})")
    check_float_dtype(op, name, value)
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must be 2-D ({letters}), got shape {tuple(value.shape)}")
    if (value.shape[0] == 0 and not empty) or value.shape[1] == 0:
        raise ValueError(f"{op}: {name} must have at least one row and one column ({letters}), got shape {tuple(value.shape)}")


def check_data(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both are fake tensors or both have data, unless a dispatch mode or a traced graph makes them fit."""
    if isinstance(value, FakeTensor) == isinstance(other, FakeTensor) or torch.compiler.is_compiling():
        return
    if torch._C._len_torch_dispatch_stack() == 0:
        raise ValueError(f"{op}: {other_name} and {name} must both be fake tensors or both have data")


def check_same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """On one device, both with data or both fake."""
    if value.device != other.device:
        raise ValueError(f"{op}: {other_name} and {name} must be on the same device, got {other.device} and {value.device}")
    check_data(op, name, value, other_name, other)


def check_like(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Same dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{op}: {other_name} and {name} must have the same dtype, got {other.dtype} and {value.dtype}")
    check_same_device(op, name, value, other_name, other)


def check_views(op: str, names: tuple[str, str], z0: Tensor, z1: Tensor) -> None:
    """Two views of one batch: equal shape (B, D), dtype and device."""
    for name, value in zip(names, (z0, z1), strict=True):
        check_matrix(op, name, value, "B, D")
    if z0.shape != z1.shape:
        raise ValueError(
            f"{op}: {names[0]} and {names[1]} must have the same shape (B, D), got {tuple(z0.shape)} and {tuple(z1.shape)}"
        )
    check_like(op, names[1], z1, names[0], z0)


def check_vector(op: str, name: str, value: Tensor, length: int, dtypes: tuple, like_name: str, like: Tensor) -> None:
    """A 1-D tensor of a given length, one of the dtypes, on the device of ``like``."""
    check_dense(op, name, value, "a tensor of shape ({},)", length)
    if value.dtype not in dtypes:
        wanted = "a float dtype" if dtypes is FLOATS else "an integer dtype" if set(INTEGERS) <= {*dtypes} else f"dtype {dtypes[0]}"
        raise TypeError(f"{op}: {name} must have {wanted}, got {value.dtype}")
    if tuple(value.shape) != (length,):
        raise ValueError(f"{op}: {name} must have shape ({length},), one for each row of {like_name}, got {tuple(value.shape)}")
    check_same_device(op, name, value, like_name, like)


def check_scalar(op: str, name: str, value: Any, like: Tensor, *, zero: bool = True) -> None:
    """A number that is finite in ``accumulator_dtype`` of ``like``, or a one-element float tensor of such a value on its device.

    With ``zero=False`` the value divides something: it must be a normal number of that dtype, so that its inverse is one too. The
    value of a tensor is read only on the CPU and outside a traced graph; reading it on a GPU would wait for the GPU.
    """
    if isinstance(value, Tensor):
        check_dense(op, name, value)
        if value.numel() != 1 or value.dtype not in FLOATS:
            raise ValueError(f"{op}: {name} must be a number or a one-element float tensor, got {value.dtype} {tuple(value.shape)}")
        if value.device != like.device:
            raise ValueError(f"{op}: {name} must be on the device of the embeddings, {like.device}, got {value.device}")
        check_data(op, name, value, "the embeddings", like)
        if not readable(value):
            return
        value = float(value.detach())
    elif isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{op}: {name} must be a number or a one-element float tensor, got {type_name(value)}")
    if isinstance(value, numpy.generic):
        value = float(value)  # a float16 cannot be compared with the limits of other dtypes
    dtype = accumulator_dtype(like)
    limits = torch.finfo(dtype)
    if not -limits.max <= value <= limits.max or (value == 0 and not zero):  # math.isfinite cannot be traced on a dynamic float
        within = "" if value == 0 or not -LARGEST <= value <= LARGEST else f" in {dtype}"
        raise ValueError(f"{op}: {name} must be finite{within}{'' if zero else ' and not 0'}, got {shown(value)}")
    if not zero and -limits.tiny < value < limits.tiny:
        raise ValueError(f"{op}: {name} must be at least {limits.tiny:.3g} in size, so that {dtype} holds its inverse, got {value}")


def check_constant(op: str, name: str, value: Any) -> None:
    """Refuses a tensor that wants a gradient, such as a target: it is a constant of the loss. Other values pass."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"{op}: {name} must not require a gradient, it is a constant of the loss; pass {name}.detach()")


def check_choice(op: str, name: str, value: Any, choices: tuple) -> None:
    """One of ``choices``, which are strings, None, True or False."""
    wanted = ", ".join(map(repr, choices))
    if not (value is None or isinstance(value, (str, bool))):
        raise TypeError(f"{op}: {name} must be one of {wanted}, got {type_name(value)}")
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {wanted}, got {value!r}")


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number of Python, NumPy or a traced graph. True and False are not."""
    return isinstance(value, WHOLES) and not isinstance(value, bool)


def as_python(value: Any) -> Any:
    """A NumPy scalar as a Python number, whose whole numbers do not overflow; anything else unchanged."""
    return value.item() if isinstance(value, numpy.generic) else value


def check_flag(op: str, name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, (bool, numpy.bool_)):
        raise TypeError(f"{op}: {name} must be True or False, got {type_name(value)}")


def check_number(op: str, name: str, value: Any, low: float = -math.inf, below: float = math.inf) -> None:
    """A finite number in [low, below)."""
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{op}: {name} must be a number, got {type_name(value)}")
    value = float(value) if isinstance(value, numpy.generic) else value
    if not (-LARGEST <= value <= LARGEST and low <= value < below):
        wanted = "finite" if low == -math.inf else f"in [{low:g}, {below:g})" if below < math.inf else f"at least {low:g}"
        raise ValueError(f"{op}: {name} must be {wanted}, got {shown(value)}")


def check_weight(op: str, name: str, value: Any, like: Tensor | None = None) -> None:
    """The weight of a term of a loss: a finite number of at least 0, in the ``accumulator_dtype`` of ``like`` where that is given.

    With a weight below 0 the loss would seek what the term is there to avoid, without a bound.
    """
    check_number(op, name, value)
    check_number(op, name, value, 0.0)
    if like is not None:
        check_scalar(op, name, value, like)


def check_share(op: str, name: str, value: Any, of: str = "") -> None:
    """A number in [0, 1]; ``of`` says in the message what it is a share of."""
    check_number(op, name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: {name} must be in [0, 1]{of}, got {value}")


def device_scalar(op: str, name: str, value: Tensor, device: torch.device) -> Tensor | None:
    """A one-element tensor as a 0-d tensor on ``device``, float32 or float64; None where the host may read its value instead."""
    if value.device.type != "cpu" and value.device != device:
        raise ValueError(f"{op}: {name} must be on {device} or the CPU, got {value.device}")
    if readable(value):
        return None
    wide = value.detach() if value.dtype in (torch.float32, torch.float64) else value.detach().double()
    return wide.reshape(()).to(device)


def as_scalar(value: float, device: torch.device) -> tuple[float, Tensor | None]:
    """A checked number as (number, None); while a graph is traced as (0, 0-d float64 tensor), as in ``traced``."""
    if torch.compiler.is_compiling():
        return 0.0, torch.zeros((), dtype=torch.float64, device=device) + value
    return float(value), None


def check_whole(op: str, name: str, value: Any, low: int, below: int = 2**31) -> int:
    """A whole number in [low, below). Returned as Python's, because NumPy's small types would overflow in what follows."""
    if not is_whole(value):
        raise TypeError(f"{op}: {name} must be a whole number, got {type(value).__name__}")
    if not low <= value < below:
        raise ValueError(f"{op}: {name} must be in [{low}, {below}), got {shown(value)}")
    return as_python(value)


def check_range(op: str, name: str, pair: Any) -> None:
    """A pair (low, high) of finite numbers with 0 < low <= high."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{op}: {name} must be a pair (low, high), got {pair!r}")
    for number in pair:
        check_number(op, name, number, 0.0)
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"{op}: {name} must be (low, high) with 0 < low <= high, got {tuple(pair)}")
