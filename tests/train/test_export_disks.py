"""``fastssl export`` on disks: full ones, those of their own, and folders that hold an earlier export."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from fastssl._ending import UsageError
from tests.support.training import needs_train
from tests.support.written_runs import write_run

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_run(folder, "simclr", data=f"folder:{folder}/gone", image_size=16)
    return folder


@pytest.fixture
def run(written, tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    shutil.copy(written / "last.ckpt", tmp_path / "run")
    return tmp_path / "run"


def export(*words: object) -> int:
    from fastssl.__main__ import main

    return main(["export", *map(str, words)])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_disk_that_refuses(run, capsys, monkeypatch):
    from fastssl.train import export as command

    torch_save = torch.save

    def full(*_):
        raise OSError(28, "No space left on device")

    with open("/dev/full", "wb", 0) as disk:
        monkeypatch.setattr("fastssl.train.targets.torch.save", lambda state, _: torch_save(state, disk))
        assert export(run, "--to", "torch") == 1 and "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(command.os, "rename", full)
    assert export(run, "--to", "torch") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and "No space left on device" in said and not list(run.rglob("model.pth"))


def test_a_folder_on_another_disk(run, monkeypatch):
    """Files move within ``--out``, which may be where a disk is mounted: from its parent they could not be renamed into it."""
    out, moved = run / "disk", []
    out.mkdir()
    rename = os.replace
    monkeypatch.setattr("fastssl.train.export.os.path.ismount", lambda path: path == out)
    monkeypatch.setattr("fastssl.train.export.os.replace", lambda a, b: (moved.append(Path(a)), rename(a, b)))
    assert export(run, "--to", "torch", "--out", out) == 0
    assert files(out) == {"README.md", "model.pth"} and len(moved) == 2 and all(out in path.parents for path in moved)


def test_what_a_library_says_of_a_full_disk_is_the_machines():
    from fastssl.train.export import attempt

    said = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors 0.8
    with pytest.raises(OSError, match="No space left on device"):
        attempt("safetensors", lambda: tuple(wrapped(OSError(2, os.strerror(2)), said)))
    with pytest.raises(OSError, match="Read-only file system"):
        attempt("onnx", lambda: tuple(wrapped(OSError(30, os.strerror(30)))))
    with pytest.raises(UsageError, match="--to onnx: RuntimeError: it could not be written"):
        attempt("onnx", lambda: tuple(wrapped(FileNotFoundError(2, os.strerror(2)))))


def wrapped(error: OSError, words: str = "it could not be written"):
    try:
        yield from (_ for _ in ()).throw(error)
    except OSError as cause:
        raise RuntimeError(words) from cause


@pytest.mark.parametrize("how", ["at once", "beside others", "no such act"])
def test_an_export_takes_the_place_of_an_earlier_one(how, run, monkeypatch):
    from fastssl.train import export as command

    out, seen = run / "out", []
    exchange = command.exchanged if how != "no such act" else lambda *_: False
    monkeypatch.setattr(command, "exchanged", lambda one, other: (seen.append((files(one), files(other))), exchange(one, other))[1])
    assert export(run, "--to", "torch", "--out", out) == 0 and not seen
    out.chmod(0o750)
    (out / "model.pth").write_bytes(b"before")
    (out / f".{16 * '0'}.folder").mkdir()  # of a killed one
    new, kept = {"README.md", "model.pth"}, set() if how != "beside others" else {"notes.txt"}
    for name in kept:
        (out / name).write_text("mine")
    assert export(run, "--to", "torch", "--out", out) == 0
    assert files(out) == new | kept and torch.load(out / "model.pth", weights_only=True) and out.stat().st_mode & 0o777 == 0o750
    assert files(run) == {"last.ckpt", "out", *(f"out/{name}" for name in new | kept)}
    assert seen == ([] if how == "beside others" else [(new, new)])
