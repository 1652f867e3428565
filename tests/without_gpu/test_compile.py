"""Every Triton configuration compiled offline, without a GPU: no spills, shared memory within the limit, matrix instructions.

``compile.py``, ``compile_sigmoid.py`` and ``compile_wide.py`` run in processes of their own, where TRITON_INTERPRET is not set.
"""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment():
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


#: Compiled on even days and on odd ones, since it takes minutes; what losses launch is compiled by host/losses.py every day.
#: Another generation of GPUs than sm_90 comes with every second of a kernel's days of seven.
PARTS = ("fwd", "cross", "bwd", "other"), ("one_pass", "triangle", "wide")


@pytest.mark.parametrize("part", (*PARTS[datetime.date.today().toordinal() % 2], "sigmoid"))
def test_compiles_without_spills(part, environment):
    module = [f"tests.without_gpu.compile_{part}"] if part in ("sigmoid", "wide") else ["tests.without_gpu.compile", part]
    command = [sys.executable, "-m", *module, "--today"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
