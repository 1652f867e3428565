"""Files and folders that are written aside: always whole; what a killed process left goes, what a living one writes stays."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastssl import _aside
from fastssl._aside import exchanged, folder_aside, remove_left, replace_text, replaced
from tests.support.training import needs_train

pytestmark = pytest.mark.skipif(_aside.fcntl is None, reason="needs POSIX")
WRITES = """
import sys
from pathlib import Path
from fastssl._aside import folder_aside, replaced
with replaced(Path(sys.argv[1], "page")) as file, folder_aside(Path(sys.argv[1])) as folder:
    file.write(b"half")
    (folder / "model.pth").write_bytes(b"half")
    print("written", flush=True)
    sys.stdin.read()
"""


def kinds(folder) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_files_are_replaced_beside_others_that_write_them_and_no_link_is_followed(tmp_path):
    mine, page = tmp_path / "mine", tmp_path / ("x" * 250)
    mine.write_text("mine")
    page.symlink_to(mine)
    (tmp_path / f".{16 * '0'}.partial").symlink_to(mine)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: replace_text(page, f"{i}" * 1000), range(64)))
    assert mine.read_text() == "mine" and not page.is_symlink() and len({*page.read_text()}) <= 2
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    (tmp_path / ".0123456789abcdef.mine").write_text("mine")
    (tmp_path / ".notes.partial").write_text("mine")
    words = [sys.executable, "-c", WRITES, tmp_path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "written\n"
        replace_text(tmp_path / "page", "new")
        remove_left(tmp_path)
        assert kinds(tmp_path) == ["", ".folder", ".mine", ".partial", ".partial"]
        other.kill()
    replace_text(tmp_path / "page", "newer")
    assert kinds(tmp_path) == ["", ".mine", ".partial"] and (tmp_path / "page").read_text() == "newer"


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "page").write_text("before")
    with pytest.raises(ValueError, match="no"), replaced(tmp_path / "page") as file:
        file.write(b"half")
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), folder_aside(tmp_path) as folder:
        (folder / "part").touch()
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["page"] and (tmp_path / "page").read_text() == "before"
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "none" / "page", "new")


def test_two_folders_are_exchanged(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert not exchanged(tmp_path / "a", tmp_path / "none")
    if sys.platform == "linux" and exchanged(tmp_path / "a", tmp_path / "b"):
        assert os.listdir(tmp_path / "a") == ["b"] and os.listdir(tmp_path / "b") == ["a"]
    else:
        assert os.listdir(tmp_path / "a") == ["a"]


@needs_train
def test_two_checkpoints_written_at_once_are_both_whole(tmp_path):
    """As by two fine-tunings of one run: neither gets the other's half."""
    import torch

    from fastssl.train.checkpoints import write_checkpoint

    path = tmp_path / "fine_tuned.ckpt"
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: write_checkpoint({"a": torch.full((1 << 16,), float(i))}, path), range(16)))
    assert len(torch.load(path, weights_only=True)["a"].unique()) == 1 and os.listdir(tmp_path) == ["fine_tuned.ckpt"]
