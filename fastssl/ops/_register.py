"""The one way to declare an op: its schema, its fake, and one implementation for each dispatch key. This file names no op."""

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastssl.checks import accumulator_dtype

from ._compiled import COMPILE_AGAIN, load_cpu, load_cuda, load_host

_Given = TypeVar("_Given", Tensor, Tensor | None)
_LIBRARY = torch.library.Library("fastssl", "FRAGMENT")

_C, why_not_cpp = load_cpu()
why_not_host = load_host(_C)
if _C is not None and why_not_host is not None:
    _C.register_list_ops()
why_not_cuda = load_cuda()
why_not_triton = None if importlib.util.find_spec("triton") else "triton is not installed"

_PACKAGE = Path(__file__).resolve().parents[1]


def contracts_digest(package: Path) -> str:
    """A digest of all that the fakes of the ops are made of: the files of ``package``'s ops, and the checks that these import.

    Where only bytecode was installed, that of the bytecode.
    """
    files = [*sorted((package / "ops").glob("*.py*")), *sorted(package.glob("checks.py*"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


# torch keeps compiled graphs on disk. Its key holds the names and the arguments of our ops, not the shapes that their fakes give: a
# graph that another version of fastssl left there would be called with the ops of this one, which may give other shapes.
torch.compiler.config.cache_key_tag += f" fastssl {contracts_digest(_PACKAGE)}"

#: op name -> dispatch key -> "C++" | "CUDA C++" | "Triton" | "reference"; what ``fastssl info`` prints.
OWNERS: dict[str, dict[str, str]] = {}


def _late(module: str, name: str) -> Callable:
    """A function that imports its module at the first call: importing fastssl loads no Triton."""

    def call(*args):
        return getattr(importlib.import_module(module), name)(*args)

    return call


def launcher(file: str, name: str) -> Callable:
    """What serves an op on a GPU by Triton: its launcher or, for float64, which no Triton kernel takes, plain PyTorch."""
    triton, reference = _late(f"fastssl.kernels.{file}", name), _late(f"fastssl.reference.{file}", name)

    def call(*args):
        return (reference if args[0].dtype == torch.float64 else triton)(*args)

    return call


def define_op(name: str, signature: str, fake: Callable, file: str):
    """Declares ``fastssl::name`` and registers what serves it. ``file`` is the name of the op's files in csrc, kernels and
    reference. Returns the bound overload."""
    try:
        _LIBRARY.define(name + signature)
    except RuntimeError as error:  # a compiled kernel of this name takes or gives something else
        raise ImportError(
            f"fastssl: the compiled kernels beside this package are those of another version of it ({name}). {COMPILE_AGAIN}"
        ) from error
    torch.library.register_fake(f"fastssl::{name}", fake)
    owners = OWNERS.setdefault(name, {})
    reference = _late(f"fastssl.reference.{file}", name)
    triton = why_not_triton is None and (_PACKAGE / "kernels" / f"{file}.py").exists()
    for key, compiled in (("CPU", "C++"), ("CUDA", "CUDA C++")):
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastssl::{name}", key):
            owners[key] = compiled
        elif key == "CUDA" and triton:
            owners[key] = "Triton"
            _LIBRARY.impl(name, launcher(file, name), key)
        else:
            owners[key] = "reference"
            _LIBRARY.impl(name, reference, key)
    return getattr(torch.ops.fastssl, name).default


def define_composite(name: str, signature: str, fake: Callable, implementation: Callable):
    """Declares ``fastssl::name``, which one Python function serves on every device: an operation that calls others and that a
    compiled graph does not look into. Returns the bound overload."""
    _LIBRARY.define(name + signature)
    torch.library.register_fake(f"fastssl::{name}", fake)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    return getattr(torch.ops.fastssl, name).default


def new_accumulator(like: Tensor, *shape: int) -> Tensor:
    """Empty, in the dtype that sums over ``like`` are kept in: float32, or float64 for float64."""
    return like.new_empty(shape, dtype=accumulator_dtype(like))


def gradient_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which an op gives the gradient of the similarities in their rows x.

    On a CPU it is the dtype of the sums, so that gradients which cancel against them can be added before anything is rounded. On a
    GPU it is the dtype of x, to which kernels round as they store.
    """
    return accumulator_dtype(x) if x.device.type == "cpu" else x.dtype


def refuse_transforms(op: str, *inputs) -> None:
    """Raises where torch (2.13) would return zeros without a word: torch.func around a compiled autograd.Function, and tangents of
    forward-mode differentiation among ``inputs``, of which those that are no tensors do not matter."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(f"{op}: torch.func transforms (grad, vmap, jacrev) are not supported; use torch.autograd")
    if forward_ad._current_level < 0:
        return
    if any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in inputs):
        raise NotImplementedError(f"{op}: forward-mode derivatives are not supported; use torch.autograd.grad or backward")


def distinct(tensor: _Given, other: Tensor | None) -> _Given:
    """``tensor``, as a view where it is ``other`` itself: dynamo (2.13) traces no Function that gets one tensor twice."""
    return tensor.view_as(tensor) if tensor is not None and tensor is other else tensor


class _Refuse(torch.autograd.Function):
    """A gradient as a function of all that it depends on, whose derivative raises."""

    @staticmethod
    def forward(ctx, op, gradient, *sources):
        ctx.op = op
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(f"{ctx.op}: second derivatives are not implemented")


def _in_a_batch(tensor: Tensor | None) -> bool:
    """Whether this is what vmap, or ``is_grads_batched=True``, makes of a batch of tensors."""
    return tensor is not None and "Batched" in str(torch._C._dispatch_keys(tensor))


def _refusing_zero(op: str, sources: list[Tensor], dtype: torch.dtype) -> Tensor:
    """A zero that depends on the sources, with a derivative that raises. It does what ``_Refuse`` does where the upstream gradient
    is a batch, for which torch records no node of a Function."""

    def refuse(_):
        raise NotImplementedError(f"{op}: second derivatives are not implemented")

    zero = sum((source.reshape(-1)[:0].sum(dtype=dtype) for source in sources), torch.zeros((), dtype=dtype))
    if zero.requires_grad:
        zero.register_hook(refuse)
    return zero


def _kind(tensor: Tensor | None) -> tuple | None:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def save(ctx, *tensors: Tensor | None) -> None:
    """``ctx.save_for_backward`` for a backward that gets its tensors from ``saved``."""
    ctx.save_for_backward(*tensors)
    if not torch.compiler.is_compiling():  # dynamo (2.13) keeps no tuple of symbols, and no hook comes between in a graph
        ctx.kinds = [_kind(tensor) for tensor in tensors]


def saved(ctx) -> tuple[Tensor | None, ...]:
    """``ctx.saved_tensors``, which a kernel may read: hooks on saved tensors may give back others than those of ``save``."""
    tensors = ctx.saved_tensors
    if not torch.compiler.is_compiling() and ctx.kinds != [_kind(tensor) for tensor in tensors]:
        raise RuntimeError(f"{ctx.op}: a hook on saved tensors gave back a tensor of another shape, dtype or device than was saved")
    return tensors


def first_derivative_only(op: str):
    """For a Function's backward: differentiating its result raises an error that names ``ctx.op``, or else ``op``.

    torch's ``once_differentiable`` takes the result for a constant without a word where the upstream gradient is one. The Function
    must save its differentiable inputs or outputs.
    """

    def decorate(backward):
        @functools.wraps(backward)
        def guarded(ctx, *upstream):
            called = getattr(ctx, "op", op)
            if not torch.compiler.is_compiling():
                ctx.op = called
            with torch.no_grad():
                gradients = backward(ctx, *upstream)
            if not torch.is_grad_enabled():
                return gradients
            sources = [t for t in (*ctx.saved_tensors, *upstream) if t is not None and t.requires_grad]
            if any(map(_in_a_batch, upstream)):
                return tuple(None if g is None else g + _refusing_zero(called, sources, g.dtype) for g in gradients)
            return tuple(None if g is None else _Refuse.apply(called, g, *sources) for g in gradients)

        return guarded

    return decorate
