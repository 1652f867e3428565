"""Every Triton configuration compiled offline, without a GPU: no spills, shared memory within the limit, matrix instructions.

``compile.py`` and the files beside it, ``compile_*.py``, run in processes of their own, where TRITON_INTERPRET is not set.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rotation import of_today

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment():
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


#: One a day, since all of them take minutes; a third of what losses launch is compiled by host/losses.py each day. With a kernel's
#: parts comes, on its day of eight, another generation of GPUs than sm_90.
PARTS = ("fwd", "one_pass", "bwd", "wide", "cross", "other", "triangle", "sigmoid", "launched", "sketches")
OF_THEIR_OWN = ("sigmoid", "wide", "launched", "sketches")


@pytest.mark.parametrize("part", of_today(PARTS, 9))
def test_compiles_without_spills(part, environment):
    module = [f"tests.without_gpu.compile_{part}"] if part in OF_THEIR_OWN else ["tests.without_gpu.compile", part]
    command = [sys.executable, "-m", *module, "--today"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
