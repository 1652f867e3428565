"""Wide registers on the stack: a store that wants an aligned address ends the process where the function has not aligned its stack,
as g++ 12 compiled some with sanitizers and little optimization."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastssl

MOVED = re.compile(
    r"\bvmov(?:aps|apd|dqa\w*|ntps|ntpd|ntdq)\s+(?=.*%([yz])mm)\S*\(%r[sb]p|\bvmov(?:aps|apd|dqa\w*|ntps|ntpd|ntdq)\s+.*%([yz])mm\d+,[^(\n]*\(%r[sb]p"
)
ALIGNED = re.compile(r"and\s+\$0xffffffffffffff(c0|80|e0),%rsp")
BYTES = {"y": 32, "z": 64, "c0": 64, "80": 128, "e0": 32}


def unaligned(code: str) -> list[str]:
    """The functions of objdump's output that move wide registers to or from an aligned place on the stack and align no stack."""
    found = []
    for part in code.split("\n\n"):
        name, _, body = part.strip().partition(":\n")
        wanted = max((BYTES[one or other] for one, other in MOVED.findall(body)), default=0)
        if wanted > max((BYTES[mask] for mask in ALIGNED.findall(body)), default=16):
            found.append(name)
    return found


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("objdump"), reason="needs objdump and an x86_64")
def test_no_function_trusts_a_stack_that_it_has_not_aligned():
    library = Path(fastssl.__file__).with_name("_cpu.so")
    if not library.exists():
        pytest.skip("there are no C++ kernels here")
    words = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(library)]
    code = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert len(MOVED.findall(code)) > 100 and unaligned(code) == []


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
