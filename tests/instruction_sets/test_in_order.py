"""The order of tasks in which blocks of rows are visited, where a task throws: the other threads must not wait for it for ever."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_an_exception_in_a_task_ends_every_thread_and_reaches_the_caller(tmp_path):
    program, torch_files = tmp_path / "in_order", Path(torch.__file__).parent
    sources = ["tests/instruction_sets/in_order.cpp", "csrc/cpu/parallel.cpp"]
    flags = ["-std=c++20", "-O1", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Icsrc", "-isystem", str(torch_files / "include")]
    libraries = [f"-L{torch_files / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{torch_files / 'lib'}"]
    subprocess.run(["g++", *flags, *sources, *libraries, "-o", str(program)], check=True, cwd=ROOT)
    for threads in (1, 4):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=120, env=environment)
        assert done.stdout.split() == ["reached"] * 8 + ["sums"]
