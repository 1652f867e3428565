"""Wide registers on the stack: a move that wants an aligned address ends the process where the function has not aligned its
stack, as it did in builds with sanitizers when sources named registers in an array by ``auto&``."""

import platform
import re
import shutil
import subprocess

import pytest

from fastssl.ops._compiled import CPU_LIBRARY

MOVED = re.compile(r"\bvmov(?:ap[sd]|dqa\w*|ntp[sd]|ntdq)\s+([^\n]*)")  # the moves that want an aligned address
ALIGNED = re.compile(r"and\s+\$0xffffffffffffff(c0|80|e0),%rsp")
BYTES = {"y": 32, "z": 64, "c0": 64, "80": 128, "e0": 32}


def widths(body: str) -> list[int]:
    """Of each such move of a wide register to or from the stack in a function, the bytes of the register."""
    operands = [each for each in MOVED.findall(body) if re.search(r"\(%r[sb]p", each)]
    return [BYTES[name] for each in operands for name in re.findall(r"%([yz])mm", each)]


def unaligned(code: str) -> list[str]:
    """The functions of objdump's output that move wide registers to or from the stack so, and align no stack."""
    found = []
    for part in code.split("\n\n"):
        name, _, body = part.strip().partition(":\n")
        if max(widths(body), default=0) > max((BYTES[mask] for mask in ALIGNED.findall(body)), default=16):
            found.append(name)
    return found


@pytest.mark.skipif(not CPU_LIBRARY.exists(), reason="there are no C++ kernels here")
@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("objdump"), reason="needs objdump and an x86_64")
def test_no_function_trusts_a_stack_that_it_has_not_aligned():
    words = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(CPU_LIBRARY)]
    code = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert len(widths(code)) > 100 and unaligned(code) == []


@pytest.mark.parametrize(
    ("align", "move", "bad"),
    [
        ("", "vmovaps %zmm1,0x40(%rsp)", True),
        ("", "vmovdqa64 -0x80(%rbp),%zmm1", True),
        ("and    $0xffffffffffffffe0,%rsp", "vmovaps %zmm1,(%rsp)", True),
        ("and    $0xffffffffffffffe0,%rsp", "vmovaps %ymm1,(%rsp)", False),
        ("and    $0xffffffffffffffc0,%rsp", "vmovaps %zmm1,(%rsp)", False),
        ("", "vmovups %zmm1,(%rsp)", False),
        ("", "vmovaps %zmm1,(%rdi)", False),
        ("", "vmovaps %xmm1,(%rsp)", False),
    ],
)
def test_the_check_can_fail(align, move, bad):
    code = f"0000 <other>:\n  1:\tret\n\n0010 <f>:\n  11:\t{align}\n  12:\t{move}\n"
    assert unaligned(code) == ["0010 <f>"] * bad
