"""The Triton kernels of ``sigmoid_pair``: against float64 in Triton's interpreter, and compiled offline without spills. Each in a
process of its own: the interpreter is chosen by TRITON_INTERPRET when Triton is first imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


def _run(*command: str, **environment: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"


def test_in_the_interpreter():
    files = "tests/triton_interpreter_sigmoid.py"
    _run("pytest", "-q", "-x", "-p", "no:cacheprovider", files, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


def test_compiles_without_spills():
    _run("tests.triton_compile_sigmoid", "--today")
