"""Launches of Triton kernels. Where the compiled kernel is known, they take a third of the host's time that Triton's own take.

Triton's ``kernel[grid](...)`` binds the arguments to the signature, describes each of them (its dtype; whether an address or an
integer is divisible by 16, whether an integer is 1 or needs more than 32 bits), makes a string of the options, looks up the kernel
that was compiled for all this, calls hooks, and only then launches. ``launch`` finds the same compiled kernel by a smaller key:

    kernel, device, of each tensor its dtype, of each integer its value, which arguments are floats or None, constants, options

and uses it only if all addresses are divisible by 16. Every other launch is left to Triton: with other addresses, with arguments of
other types, under a profiler's hooks, in Triton's interpreter, and in other versions than 3.6, whose compiled kernels may have to
be called in another way.
"""

import triton
from torch import Tensor
from torch.nn import Parameter
from triton import knobs
from triton.runtime import JITFunction, driver

from fastssl.ops._register import _C

#: key -> (kernel, compiled kernel, values of the constants). The first launch with a key adds its entry.
_PLANS: dict[tuple, tuple] = {}
_MOST = 4096  # plans, after which all are forgotten; otherwise they would grow without end where sizes change at every step
#: If False, every launch is left to Triton.
planned = triton.__version__.startswith("3.6.")
#: For tests: a planned launch asks Triton which kernel it would have taken.
checked = False


def key_of(arguments: tuple) -> tuple[tuple, tuple] | None:
    """(what decides which compiled kernel fits, the arguments as the launcher takes them), or None where Triton has to decide.

    ``_C.launch_key``, where it is built, is this function in C++; it returns addresses in place of tensors.
    """
    parts, addresses, devices = [], 0, set()
    for value in arguments:
        of = type(value)
        if of is Tensor or of is Parameter:
            addresses |= value.data_ptr()
            devices.add(value.device)
            parts.append(value.dtype)
        elif value is None or of is int:
            parts.append(value)
        elif of is float:
            parts.append(float)
        else:
            return None
    return None if addresses % 16 or len(devices) > 1 else (tuple(parts), arguments)


_key_of = getattr(_C, "launch_key", key_of)


def launch(kernel, grid: tuple[int, ...], *args, **constants) -> None:
    """``kernel[grid](*args, **constants)`` on the current device and stream; grid (x,) or (x, y).

    ``args`` are tensors, None, ints and floats, in the order of the signature up to the first constexpr. ``constants`` are all
    constexprs and Triton's options, by name.
    """
    found = _key_of(args) if planned and type(kernel) is JITFunction and not _hooked() else None
    if found is None:
        kernel[grid](*args, **constants)
        return
    active = driver.active
    device = active.get_current_device()
    key = (id(kernel), device, found[0], *constants.items())
    plan = _PLANS.get(key)
    if plan is None:
        _keep(key, kernel, kernel[grid](*args, **constants), len(args), constants)
        return
    _, compiled, values = plan
    if checked:
        _check(compiled, kernel, grid, args, constants)
    y = grid[1] if len(grid) > 1 else 1
    stream = active.get_current_stream(device)
    compiled.run(grid[0], y, 1, stream, compiled.function, compiled.packed_metadata, None, None, None, *found[1], *values)


def _hooked() -> bool:
    """Whether somebody wants to be called before or after launches, as Triton's profiler does."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _keep(key: tuple, kernel: JITFunction, compiled, count: int, constants: dict) -> None:
    """Keeps the plan of a key, unless somebody wants to be called before each run of the kernel."""
    names = [p.name for p in kernel.params[count:]]
    assert len(names) == len(kernel.constexprs) and all(p.is_constexpr for p in kernel.params[count:]), kernel.__name__
    if kernel.pre_run_hooks:
        return
    if len(_PLANS) >= _MOST:
        _PLANS.clear()
    _PLANS[key] = kernel, compiled, tuple(constants[name] for name in names)


def _check(compiled, kernel: JITFunction, grid: tuple[int, ...], args: tuple, constants: dict) -> None:
    if kernel.run(*args, grid=grid, warmup=True, **constants) is not compiled:
        raise AssertionError(f"{kernel.__name__}: the plan is another kernel than Triton's for {args} and {constants}")
