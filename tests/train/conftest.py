"""What several files of these tests ask about."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.training import write_grey_classes


@pytest.fixture(scope="session")
def grey_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SimCLR on 24 training and 6 test images of two classes of grey. No test writes there."""
    from fastssl.__main__ import main

    folder = tmp_path_factory.mktemp("grey")
    write_grey_classes(folder / "images")
    options = ["--image-size", "16", "--batch-size", "8", "--epochs", "2", "--map", "none", "--workers", "0"]
    where = ["--data", f"folder:{folder / 'images'}", "--accelerator", "cpu", "--out", str(folder / "run")]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests that repeat or resume it, whose bits would be others
    assert main(["train", "simclr", *where, *options]) == 0
    torch.set_num_threads(before)
    return folder / "run"


@pytest.fixture
def own_grey_run(grey_run: Path, tmp_path: Path) -> Path:
    """A copy of ``grey_run``, of the same images, for a test that writes beside its checkpoint."""
    return shutil.copytree(grey_run, tmp_path / "grey_run")
