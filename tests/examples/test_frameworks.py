"""Each script of ``examples/frameworks`` trains at its smallest, with operations of fastssl: a quarter of them a day."""

import contextlib
import importlib.util
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.peers import ready_torchvision
from tests.examples.test_examples import OursSeen
from tests.support.example_index import indexed, understands
from tests.support.processes import run_processes
from tests.support.rotation import every, of_today
from tests.support.training import write_grey_classes

pytestmark = pytest.mark.usefixtures("one_thread")

SIMILARITY = "fastssl::similarity_bwd"
#: What each script needs besides the packages of the extra ``train``, and operations of fastssl that its training step runs.
NEEDS = {
    "pytorch_simclr": ((), {SIMILARITY}),
    "lightning_moco": ((), {"fastssl::similarity_one_pass", "fastssl::queue_push_", "fastssl::ema_update_", "fastssl::adamw_"}),
    "accelerate_vicreg": (("accelerate",), {"fastssl::squared_products_bwd"}),
    "timm_simclr": (("timm", "torchvision"), {SIMILARITY, "fastssl::ema_update_"}),
    "lightly_simclr": (("lightly", "torchvision"), {SIMILARITY}),
    "open_clip_digits": (("open_clip", "ftfy", "torchvision"), {"fastssl::similarity_cross_bwd"}),
    "trainer_simcse": (("transformers", "accelerate"), {SIMILARITY}),
}
#: Scripts that several processes run together, and the operations there.
TOGETHER = {
    "pytorch_simclr": {"fastssl::ranks_similarity_symmetric_bwd"},
    "accelerate_vicreg": {"fastssl::ranks_squared_products_bwd"},
}


def module_of(script: str):
    for name in ("sklearn", "kornia", "lightning", *NEEDS[script][0]):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    ready_torchvision()
    return importlib.import_module(f"examples.frameworks.{script}")


def smallest(script: str, folder: Path, monkeypatch) -> list[str]:
    """The options of a run of few steps; the data of scripts that bring their own are cut short."""
    if script == "trainer_simcse":
        from fastssl.train import sentences

        every = sentences.documents
        monkeypatch.setattr(sentences, "documents", lambda: itertools.islice(every(), 60))
        monkeypatch.setattr(sentences, "LEAST", 16)
        return ["--epochs", "0.1", "--batch-size", "16"]
    if script == "open_clip_digits":
        import sklearn.datasets

        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        monkeypatch.setattr(module_of(script), "load_digits", lambda return_X_y: (images[:60], labels[:60]))
        return ["--epochs", "1", "--batch-size", "16"]
    write_grey_classes(folder / "images")
    return ["--data", f"folder:{folder / 'images'}", "--epochs", "3"]  # of fewer images than a batch


@contextlib.contextmanager
def steps_counted() -> Iterator[list]:
    """A list that gets an entry for each step of an optimizer."""
    steps: list = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    yield steps
    handle.remove()


def check(script: str, operations: set[str], folder: Path, monkeypatch) -> dict[str, float]:
    module = module_of(script)
    for words in indexed()[f"frameworks.{script}"]:
        assert understands(module.main, words), words
    options = smallest(script, folder, monkeypatch)
    with OursSeen() as seen, steps_counted() as steps:
        scores = module.main(options)
    assert operations <= seen.names, seen.names
    assert len(steps) >= 3 or script == "trainer_simcse", len(steps)
    assert all(0.0 <= score <= 1.0 for score in scores.values()), scores
    return scores


@pytest.mark.parametrize("script", of_today(NEEDS, 4))
def test_the_script_trains_and_prints_its_score(script, tmp_path, monkeypatch, capsys):
    scores = check(script, NEEDS[script][1], tmp_path, monkeypatch)
    said = capsys.readouterr().out
    printed = re.findall(r"untrained ([\d.]+), trained ([\d.]+)$", said, re.MULTILINE)
    assert [f"{score:.3f}" for score in scores.values()] == list(printed[0]), said


def check_together(rank: int, world: int, folder: Path) -> None:
    """The process group is there already: a script's own calls that make and end it do nothing."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    distributed.init_process_group = distributed.destroy_process_group = lambda *_, **options: None
    for script, operations in TOGETHER.items():
        scores = check(script, operations, folder / f"{script}-{rank}", pytest.MonkeyPatch())
        every = [None] * world
        distributed.all_gather_object(every, scores)
        assert every == [scores] * world, every


@every(6)
def test_scripts_train_in_two_processes(tmp_path):
    module_of("accelerate_vicreg")
    run_processes(check_together, 2, tmp_path, tmp_path)


@every(6)
def test_the_score_of_pixels_is_the_printed_one():
    """What every score of the index stands against; those of the scripts are above it there."""
    pytest.importorskip("skimage")
    from fastssl.train import data, evaluate

    text = (Path(__file__).resolve().parents[2] / "examples" / "README.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"The pixels themselves reach ([\d.]+) in the kNN vote", text)
    assert evaluate.knn_score(torch.nn.Flatten(), data.load_data("photos")) == pytest.approx(float(printed), abs=2e-3)
    trained = [float(score) for score in re.findall(r"kNN, 18 classes \| [\d.]+ \| ([\d.]+) \|", text)]
    assert len(trained) == 5 and min(trained) > 2 * float(printed)
