"""The CPU's element functions alone, against float64: compiled for this machine, and for an ARM CPU that qemu plays.

The program (``elements.cpp``) needs no torch when it runs. Debian has the ARM tools as g++-aarch64-linux-gnu and qemu-user.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastssl.ops._register import _C

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tests/instruction_sets/elements.cpp", *(f"csrc/cpu/{name}.cpp" for name in ("isa", "tile_rows", "token_rows")))
ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64")
FUNCTIONS = {
    "exclude", "add_bias", "drop_above", "count_above", "column_sum", "sum_bounded", "weight_bounded", "soft_bounded", "sum_online",
    "peaks", "weight_online", "soft_online", "sigmoid", "dot", "add_squares", "16_bits", "tokens",
}  # fmt: skip


def errors(folder: Path, compiler: str, *flags: str, run: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Instruction set -> function -> its largest error, in units of what the arithmetic may lose."""
    program = folder / "elements"
    includes = ["-Icsrc", "-isystem", str(Path(torch.__file__).parent / "include")]
    flags = ("-std=c++20", "-fno-math-errno", "-Wno-unknown-pragmas", *flags)
    subprocess.run([compiler, *flags, *includes, *SOURCES, "-o", str(program)], check=True, cwd=ROOT)
    done = subprocess.run([*run, str(program)], check=True, capture_output=True, text=True)
    found: dict[str, dict[str, float]] = {}
    for line in done.stdout.splitlines():
        name, function, error = line.split()
        found.setdefault(name, {})[function] = float(error)
    return found


def judge(found: dict[str, dict[str, float]]) -> None:
    for name, by_function in found.items():
        assert by_function.keys() == FUNCTIONS
        assert {function: error for function, error in by_function.items() if not error <= 1} == {}, name


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_every_instruction_set_of_this_machine(tmp_path):
    found = errors(tmp_path, "g++", "-O1")
    assert _C is None or list(found) == _C.isas()
    judge(found)


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in ARM), reason=f"needs {' and '.join(ARM)}")
def test_neon(tmp_path):
    """As it is built: with -O3, and multiply-adds in one instruction."""
    found = errors(tmp_path, ARM[0], "-O3", "-static", run=ARM[1:])
    assert list(found) == ["neon"]
    judge(found)
