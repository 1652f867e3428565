"""The CPU's element functions and tile products alone, against float64: compiled for this machine, and for an ARM CPU that qemu
plays.

The programs (``elements.cpp``, ``products.cpp``) need no torch when they run. Debian has the ARM tools as g++-aarch64-linux-gnu and
qemu-user.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastssl.ops._register import _C

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"elements": ("tile_rows", "token_rows"), "products": ("products",)}
X86_ONLY = ("csrc/cpu/products_brgemm.cpp", "csrc/cpu/units.cpp")  # what the former asks on x86-64 would end the program on ARM
ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64")
FUNCTIONS = {
    "exclude", "add_bias", "drop_above", "count_above", "column_sum", "sum_bounded", "weight_bounded", "soft_bounded", "sum_online",
    "kept", "peaks", "weight_online", "soft_online", "sigmoid", "dot", "add_squares", "16_bits", "tokens",
}  # fmt: skip
CHECKS = {"elements": FUNCTIONS, "products": {"float", "double", "bfloat16", "symmetric", "rounded", "chained"}}


def errors(name: str, folder: Path, compiler: str, *flags: str, run: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Instruction set -> function or check -> its largest error, in units of what the arithmetic may lose."""
    program = folder / name
    sources = [f"tests/instruction_sets/{name}.cpp", *(f"csrc/cpu/{each}.cpp" for each in ("isa", *SOURCES[name]))]
    includes = ["-Icsrc", "-isystem", str(Path(torch.__file__).parent / "include")]
    flags = ("-std=c++20", "-fno-math-errno", "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020b000000000000", *flags)
    subprocess.run([compiler, *flags, *includes, *sources, "-o", str(program)], check=True, cwd=ROOT)
    done = subprocess.run([*run, str(program)], check=True, capture_output=True, text=True)
    found: dict[str, dict[str, float]] = {}
    for line in done.stdout.splitlines():
        instructions, function, error = line.split()
        found.setdefault(instructions, {})[function] = float(error)
    return found


def judge(name: str, found: dict[str, dict[str, float]]) -> None:
    for instructions, by_function in found.items():
        assert by_function.keys() == CHECKS[name]
        assert {function: error for function, error in by_function.items() if not error <= 1} == {}, instructions


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize(("name", "level"), [("elements", "-O1"), ("products", "-O2")])  # -O1 joins no multiply-adds
def test_every_instruction_set_of_this_machine(name, level, tmp_path):
    found = errors(name, tmp_path, "g++", level)
    assert _C is None or list(found) == _C.isas()
    judge(name, found)


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in ARM), reason=f"needs {' and '.join(ARM)}")
@pytest.mark.parametrize("name", SOURCES)
def test_neon(name, tmp_path):
    """As it is built: with -O3, and multiply-adds in one instruction."""
    found = errors(name, tmp_path, ARM[0], "-O3", "-static", *(X86_ONLY if name == "products" else ()), run=ARM[1:])
    assert list(found) == ["neon"]
    judge(name, found)
