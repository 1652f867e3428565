"""Every Triton configuration compiled offline, without a GPU: no spills, shared memory within the limit, matrix instructions.

Runs ``triton_compile.py`` and ``triton_compile_wide.py`` in a process of its own, where TRITON_INTERPRET is not set.
"""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment():
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


#: Compiled on even days and on odd ones, since it takes minutes; what losses launch is compiled by triton_host.py every day.
#: Another generation of GPUs than sm_90 comes with every second of a kernel's days of seven.
PARTS = ("fwd", "cross", "bwd", "other"), ("one_pass", "triangle", "wide")


@pytest.mark.parametrize("part", PARTS[datetime.date.today().toordinal() % 2])
def test_compiles_without_spills(part, environment):
    module = ["tests.triton_compile_wide"] if part == "wide" else ["tests.triton_compile", part]
    command = [sys.executable, "-m", *module, "--today"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
