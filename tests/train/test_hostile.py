"""A part of ``python -m tests.reliability checkpoints`` each day, and what else nobody may do by a checkpoint."""

import pytest
import torch

from tests.reliability.apart import FAULT, REFUSED, SERVED, apart
from tests.reliability.checkpoints import command_one, files, read_one
from tests.reliability.hostile import exchanged, saved
from tests.support.rotation import of_today
from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize("kind, days", of_today([("cut", 20), ("hostile", 2), ("flipped", 1), ("resealed", 1)], 2))
def test_a_damaged_or_hostile_file_is_refused_or_read_as_it_was(kind, days, grey_run, tmp_path):
    items = of_today(files(grey_run, 20, tmp_path / "code was run")[kind], days)
    said = apart(read_one, items)
    assert items and not [f"{name}: {words}" for (name, *_), words in zip(items, said, strict=True) if words.startswith(FAULT)]
    assert not (tmp_path / "code was run").exists()
    if kind in ("cut", "hostile"):
        assert all(words.startswith(REFUSED) for words in said), [name for (name, *_), words in zip(items, said, strict=True)]


def test_a_fault_is_counted():
    def work(item):
        if item == "dies":
            torch.empty(0).set_(torch.UntypedStorage(0), 0, (1 << 40,), (0,))
            raise SystemExit(3)
        return SERVED

    said = apart(work, ["a", "dies", "b"])
    assert said[0] == said[2] == SERVED and said[1].startswith(FAULT)


ALTERED = [
    (("fastssl", "history", 1, "loss"), "x", "history of epochs is damaged"),
    (("fastssl", "history", 1, "epoch"), 7, "history of epochs is damaged"),
    (("fastssl", "image_size"), 1 << 40, "image_size must be at most"),
    (("fastssl", "data"), [1], "what it notes of its data is damaged"),
    (("fastssl", "data", "train", "count"), {}, "what it notes of its data is damaged"),
    (("fastssl", "cut_short"), {"losses": [1], "generators": {}}, "its interrupted epoch is damaged"),
    (("optimizer_states", 0, "state", 2, "exp_avg"), -1, "cannot be restored"),
    (("lr_schedulers", 0, "last_epoch"), {}, "cannot be restored"),
]


@pytest.mark.parametrize("path, new, reason", of_today(ALTERED, 3))
def test_a_value_of_another_kind_is_a_line(path, new, reason, grey_run):
    content = saved(exchanged(torch.load(grey_run / "last.ckpt", weights_only=True), path, new))
    data = ["--data", f"folder:{grey_run.parent / 'images'}", "--accelerator", "cpu", "--workers", "0", "--map", "none"]
    said = command_one(("", content, ["train", "simclr", *data, "--epochs", "3", "--resume", "--out"]))
    assert said.startswith(REFUSED) and reason in said


def test_a_checkpoint_names_no_file_that_goes(grey_run, tmp_path):
    """Lightning removes the best checkpoint that a checkpoint names, with all that lies below it, when a new one is there."""
    from fastssl.train.loop import AtomicCheckpointIO

    kept = tmp_path / "kept"
    kept.mkdir()
    AtomicCheckpointIO().remove_checkpoint(kept)
    assert kept.exists()
