"""Launches of Triton kernels, which take a third of the host's time where the compiled kernel is known.

Triton's ``kernel[grid](...)`` binds the arguments to the signature, describes each of them (its dtype; whether an address or an
integer is divisible by 16, an integer 1 or beyond 32 bits), makes a text of the options, looks for the compiled kernel of all that,
calls hooks, and only then launches. ``launch`` finds the compiled kernel by a key that decides as much:

    kernel, device, of each tensor its dtype, of each integer its value, which arguments are floats or None, constants, options

and takes it only where all addresses are divisible by 16. Every other launch goes Triton's own way: with other addresses, with
arguments of other types, under a profiler's hooks, in Triton's interpreter, and in a Triton whose compiled kernels may be called
otherwise than those of 3.6.
"""

import triton
from torch import Tensor
from torch.nn import Parameter
from triton import knobs
from triton.runtime import JITFunction, driver

from fastssl.ops._register import _C

#: key -> (kernel, compiled kernel, values of the constants): the first launch of a key puts it there.
_PLANS: dict[tuple, tuple] = {}
_MOST = 4096  # plans, after which all are forgotten: where sizes change at every step they would grow without end
#: False: every launch goes Triton's own way.
planned = triton.__version__.startswith("3.6.")
#: For tests: a planned launch asks Triton which kernel it would have taken.
checked = False


def key_of(arguments: tuple) -> tuple[tuple, tuple] | None:
    """(what decides which compiled kernel fits, the arguments as the launcher takes them), or None: Triton is to decide.

    ``_C.launch_key`` is this function in C++, where it is built; it hands over addresses in place of tensors.
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

    ``args``: tensors, None, ints and floats, in the order of the signature up to the first constexpr; ``constants``: all constexprs
    and Triton's options, by name.
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
