"""Compile Triton kernels without a GPU, through their own launchers, and read what the assembler says of them.

``offline(arch, num_sms)`` answers Triton's questions about the device. A launcher called inside it, on CPU tensors, takes the path
of a real launch up to the launch itself: the same tiles and splits, the same types and divisibilities, so also the same entry of
Triton's cache, which a later launch on such a GPU finds (tests/benchmarks/test_tune.py compares the two).
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastssl.kernels.host import device, launch
from fastssl.kernels.host.device import DeviceProperties

OBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
#: Shared memory that one program may take, by compute capability.
SHARED_KIB = {80: 163, 90: 227, 100: 227, 120: 99}
#: Shared memory, registers and threads of one SM; each program takes 1 KiB for itself.
SM_SHARED_KIB = {80: 164, 90: 228, 100: 228, 120: 100}
SM_REGISTERS = 65536
SM_THREADS = {80: 2048, 90: 2048, 100: 2048, 120: 1536}


class _Device:
    """What ``JITFunction.run`` asks of a driver before it compiles."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def offline(arch: int, num_sms: int) -> Iterator[list[tuple[str, object]]]:
    """Inside, launches compile and do not run; the list collects (name of the kernel, compiled kernel) of each.

    Nothing that a kernel would write is written. Not with TRITON_INTERPRET=1. Kernels compiled for one architecture stay with
    their function for the life of the process: use one ``arch`` in a process.
    """
    found: list[tuple[str, object]] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.__name__, compiled))
        return compiled

    before = driver._active
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(device, "CPU", DeviceProperties(arch, num_sms)))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        stack.enter_context(mock.patch.object(launch, "planned", False))
        driver.set_active(_Device(arch))
        try:
            yield found
        finally:
            driver._active = before


def _objdump(compiled, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([OBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout


def resources(compiled) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) of a thread."""
    usage = _objdump(compiled, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump -res-usage says nothing of registers: {usage[:200]}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def disassembly(compiled) -> str:
    """The machine code, as ``cuobjdump -sass`` prints it."""
    return _objdump(compiled, "-sass")


def serialised(sass: str) -> bool:
    """Whether each product of a Hopper's matrix units is waited for before the next begins. Those of one ``tl.dot`` run behind each
    other and are waited for once, unless ptxas finds their registers used in between (its warnings C75xx); they then take about
    twice the time."""
    products, waits = sass.count("HGMMA"), sass.count("WARPGROUP.DEPBAR")
    return products > 4 and waits >= products


def constant(compiled, name: str):
    """What a kernel was compiled with for one of its constants; None where it has none of that name."""
    source, names = compiled.src, compiled.src.fn.arg_names
    return source.constants.get((names.index(name),)) if name in names else None


def programs_per_sm(registers: int, shared: int, warps: int, arch: int) -> int:
    """Programs of ``warps`` warps that one SM holds at once; ``registers`` of a thread, ``shared`` bytes of a program."""
    by_registers = SM_REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = int(SM_SHARED_KIB[arch] * 1024 // (shared + 1024))
    return min(by_registers, by_shared, SM_THREADS[arch] // (32 * warps))
