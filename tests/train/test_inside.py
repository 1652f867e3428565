"""Runs that lie in their own folder of images, and folders with fewer images than a batch."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fastssl.__main__ import main
from fastssl.train import UsageError
from fastssl.train.layout import find_images, refuse_as_out
from tests.support.folders import counts, tree
from tests.support.training import needs_train, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def test_a_lock_of_ours_shows_a_run_and_another_does_not(tmp_path):
    """A run that was killed before its first checkpoint has drawn a picture already."""
    root = tree(tmp_path / "root", {"a/": 5, "b/": 5, "r/reconstruction.png": 1, "c/": 5})
    (root / "r" / ".lock").write_text("process 7 on host (since 2026-01-01 00:00:00)\n")
    (root / "c" / ".lock").write_text("mine")
    found = find_images(root)
    assert counts(found.train) == {"a": 4, "b": 4, "c": 4} and not found.warnings
    assert "left out: 1 hidden entry, files of 1 run (r)" in found.notes


def test_a_run_among_its_images_is_refused_unless_it_is_there_already(tmp_path, capsys):
    root = tree(tmp_path / "root", {"a/": 5, "b/": 5, "runs/old/last.ckpt": 1, "runs/old/map.png": 1})
    for out, held in ((root, 10), (root / "b", 5)):
        for more in ([], ["--resume"]):
            assert main(["train", "simclr", "--data", f"folder:{root}", "--out", str(out), *more]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and f"--out {out}: holds {held} images of --data folder:{root}" in said
        assert not (out / ".lock").exists()
    (root / "last.ckpt").touch()
    for out in (root, root / "runs", root / "runs" / "old", root / "runs" / "new", tmp_path):
        refuse_as_out(out, root)


def test_a_run_inside_its_images_does_not_learn_from_itself(tmp_path, capsys, monkeypatch):
    """Begun, resumed and evaluated in the folder of the images, with the defaults of --out and --batch-size."""
    write_grey_classes(tmp_path)
    monkeypatch.chdir(tmp_path)
    small = ["--image-size", "16", "--decoder-dim", "16", "--decoder-depth", "1", "--map", "none", "--workers", "0"]
    mae = ["train", "mae", "--data", "folder:.", "--accelerator", "cpu", *small]
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume"]):
        assert main([*mae, *more]) == 0
        said = capsys.readouterr()
        assert "24 training and 6 test images" in said.out and "2 classes (dark, light)" in said.out and said.err == ""
        lowered = "--batch-size 24: all training images, which are fewer than the default 64\n" in said.out
        assert lowered == ("--resume" not in more)
    assert {"curves.png", "reconstruction.png"} <= {path.name for path in Path("runs/mae").iterdir()}
    assert "files of 1 run (runs/mae)" in said.out and "epoch   2/2" in said.out
    assert main([*mae, "--batch-size", "25"]) == 2
    assert "--batch-size 25: folder:. has only 24 training images; pass --batch-size 24 or less" in capsys.readouterr().err
    assert main(["eval", "runs/mae", "--map", "none", "--workers", "0"]) == 0
    said = capsys.readouterr()
    assert "24 training and 6 test images" in said.out and said.err == ""


def test_no_whole_batch_for_each_of_several_processes():
    from fastssl.train.loop import MethodModule
    from fastssl.train.recipes import RECIPES

    def module(batch_size: int) -> SimpleNamespace:
        trainer, data = SimpleNamespace(world_size=2, global_rank=1), SimpleNamespace(train=range(24))
        config = RECIPES["simclr"].settings(batch_size=batch_size)
        return SimpleNamespace(
            config=config, trainer=trainer, data=data, recipe=RECIPES["simclr"], history=[], losses=[], workers=0, order_of=None
        )

    assert len(MethodModule.train_dataloader(module(12))) == 1
    with pytest.raises(UsageError, match="--batch-size 13: each of 2 processes has only 12 training images; pass --batch-size 12"):
        MethodModule.train_dataloader(module(13))


@pytest.mark.parametrize("images, batch_size", [(17, 8), (5, 2), (16, 8)])
def test_the_default_batch_is_what_each_process_has(images, batch_size):
    from fastssl.train.cli import fitting_batch
    from fastssl.train.hardware import check_hardware
    from fastssl.train.recipes import RECIPES

    processes = check_hardware({"accelerator": "cpu", "devices": "2", "num_nodes": 1, "strategy": "auto", "precision": "32"})
    data, config = SimpleNamespace(train=range(images)), RECIPES["simclr"].settings(data="folder:x", batch_size=9)
    assert processes == 2 and fitting_batch(config, data, chosen=False, processes=2).batch_size == batch_size
    with pytest.raises(UsageError, match=f"--batch-size 9: each of 2 processes has only {batch_size} training images"):
        fitting_batch(config, data, chosen=True, processes=2)
    assert fitting_batch(config, SimpleNamespace(train=range(18)), chosen=False, processes=2) == config
    with pytest.raises(UsageError, match="--devices: of folder:x each of 2 processes has 1 training image, at least 2 are needed"):
        fitting_batch(config, SimpleNamespace(train=range(3)), chosen=False, processes=2)


@pytest.mark.parametrize("total, batch, processes, rest", [(64, 40, 1, 24), (100, 45, 2, 10), (101, 45, 2, 11), (47, 8, 3, 23)])
def test_the_rest_that_fills_no_batch_is_said(total, batch, processes, rest):
    """More than a tenth of the samples; in each epoch others, as the loop's sampler and loader leave them out."""
    import torch

    from fastssl.train.cli import left_out
    from fastssl.train.loop import Shuffled
    from fastssl.train.recipes import RECIPES

    said = left_out(RECIPES["simclr"].settings(batch_size=batch), SimpleNamespace(train=range(total)), processes)
    each = f" in each of {processes} processes" if processes > 1 else ""
    line = f"{rest} of {total} images do not fill a batch of {batch}{each} and are left out of each epoch, other ones each time"
    assert said == (line if 10 * rest > total else None)
    missing = []
    for epoch in (0, 1, 2):
        seen = set()
        for rank in range(processes):
            sampler = Shuffled(range(total), replicas=processes, rank=rank, seed=3, epoch=epoch, skip=0, order=lambda _: None)
            seen |= {i for part in torch.utils.data.BatchSampler(sampler, batch, drop_last=True) for i in part}
        missing.append(frozenset(range(total)) - seen)
    assert {len(left) for left in missing} == {rest} and len(set(missing)) == 3


def test_lines_about_a_finished_run_and_its_neighbours(capsys):
    from fastssl.train.cli import announce
    from fastssl.train.recipes import RECIPES

    data = SimpleNamespace(name="x\ny", summary=lambda: "3 images, 2 classes (a\nb, c)", channels=3)
    found = (Path("run/last.ckpt"), {"fastssl": {"history": [{"epoch": 5}]}})
    announce(
        RECIPES["simclr"].settings(epochs=4), data, SimpleNamespace(modules=lambda: []), {"resume": True, "out": Path("run")}, found
    )
    said = capsys.readouterr().out.splitlines()
    assert said == [
        r"simclr, conv, on x\ny: 3 images, 2 classes (a\nb, c)",
        "resume: 5 epochs were finished in run/last.ckpt, more than --epochs 4; only evaluating",
    ]
