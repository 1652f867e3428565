"""One way to declare an op: schema and fake here, one implementation for each dispatch key. No op is named in this file."""

import importlib
import importlib.util
from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("fastssl", "FRAGMENT")

try:
    from fastssl import _C  # loading it registers the C++ kernels for the CPU key
except ImportError as error:
    _C, why_not_cpp = None, str(error)
else:
    why_not_cpp = None

why_not_triton = None if importlib.util.find_spec("triton") else "triton is not installed"

#: op name -> dispatch key -> "C++" | "Triton" | "reference"; what ``fastssl info`` prints.
OWNERS: dict[str, dict[str, str]] = {}


def _late(module: str, name: str) -> Callable:
    """A function that imports its module at the first call: importing fastssl loads no Triton."""

    def call(*args):
        return getattr(importlib.import_module(module), name)(*args)

    return call


def define_op(name: str, signature: str, fake: Callable, file: str):
    """Declare ``fastssl::name``; ``file`` is the op's word in csrc, kernels and reference. Returns the bound overload."""
    _LIBRARY.define(name + signature)
    torch.library.register_fake(f"fastssl::{name}", fake)
    owners = OWNERS.setdefault(name, {})
    reference = _late(f"fastssl.reference.{file}", name)
    has_cpp = torch._C._dispatch_has_kernel_for_dispatch_key
    if has_cpp(f"fastssl::{name}", "CPU"):
        owners["CPU"] = "C++"
    else:
        owners["CPU"] = "reference"
        _LIBRARY.impl(name, reference, "CPU")
    owners["CUDA"] = "reference" if why_not_triton else "Triton"
    _LIBRARY.impl(name, reference if why_not_triton else _late(f"fastssl.kernels.{file}", name), "CUDA")
    return getattr(torch.ops.fastssl, name).default


def refuse_functorch(op: str) -> None:
    """torch.func around an autograd.Function gives silent zeros when compiled (torch 2.13): refuse it in words."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(f"{op}: torch.func transforms (grad, vmap, jacrev) are not supported; use torch.autograd")
