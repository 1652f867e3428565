"""One of the checks of ``python -m tests.reliability`` each day, at a small size; ``tests/train/test_hostile.py`` has another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.__main__ import CHECKS
from tests.support.rotation import of_today
from tests.support.training import needs_train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [("kills", 2), ("disks", 1), ("workers", 1)]  # and how many times


@needs_train
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and forks")
@pytest.mark.parametrize("check, times", of_today(SMALL, len(SMALL)))
def test_a_check_finds_no_fault(check, times):
    words = [sys.executable, "-m", "tests.reliability", check, "--times", str(times)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and f"{check}: 0 faults" in done.stdout, done.stdout + done.stderr


def test_every_check_has_a_module_and_a_figure():
    page = (ROOT / "docs" / "reliability.md").read_text()
    for check in CHECKS:
        assert (ROOT / "tests" / "reliability" / f"{check}.py").is_file()
        assert f"python -m tests.reliability {check}" in page
