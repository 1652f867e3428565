"""From the losses through Triton's own launcher to a driver that runs nothing: ``host/*.py``, each in a process of its own,
where TRITON_INTERPRET is not set and a stub answers for libcuda."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.rotation import of_today

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", of_today(["losses.py", "launches.py", "distillation.py"], 3))
@pytest.mark.skipif(torch.cuda.is_available(), reason="the stub would stand in for the driver of a real GPU; tests/gpu runs there")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="Triton builds its launchers with gcc")
def test_every_launch_of_the_cases_compiles_packs_its_arguments_and_fits(file):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/without_gpu/host/{file}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
