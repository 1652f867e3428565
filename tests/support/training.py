"""What tests of real training share: whether the packages for it are here, small data, a plain loop."""

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PACKAGES = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard")


needs_train = pytest.mark.skipif(any(find_spec(name) is None for name in PACKAGES), reason="fastssl[train] is not installed")


def part_of(data, share: int, test_share: int):
    """Every ``share``-th training image and every ``test_share``-th test image of ImageData."""
    from fastssl.train.data import TensorImages

    def every(half, step):
        part = TensorImages(half.images[::step], half.labels[::step], half.class_names)
        part.gives_index = half.gives_index
        return part

    return dataclasses.replace(data, train=every(data.train, share), test=every(data.test, test_share))


def train(module, recipe, epochs: int, batch: int) -> list[float]:
    """The mean loss of each epoch."""
    means = []
    steady = {p for name in recipe.steady for p in module.method.get_submodule(name).parameters()}
    optimizer = torch.optim.AdamW([p for p in module.method.parameters() if p not in steady])
    fresh = torch.optim.AdamW([*steady, torch.zeros(1)], 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * (len(module.data.train) // batch))
    for epoch in range(epochs):
        losses = []
        order = None if recipe.each_round is None else recipe.each_round(module, epoch)
        for indices in (torch.randperm(len(module.data.train)) if order is None else order).split(batch):
            if len(indices) == batch:
                optimizer.zero_grad()
                fresh.zero_grad()
                loss = module.method(*recipe.arguments(module, module.data.train.__getitems__(indices.tolist())))
                loss.backward()
                optimizer.step()
                fresh.step()
                schedule.step()
                losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


def write_grey_classes(folder: Path) -> None:
    from PIL import Image

    for name, level in (("dark", 60), ("light", 160)):
        (folder / name).mkdir(parents=True)
        for i in range(15):
            noise = torch.randint(0, 80, (20, 20, 3), dtype=torch.uint8)
            Image.fromarray((noise + level).numpy()).save(folder / name / f"{i}.png")


def train_until(step: int, options: list[str], **replaced: Callable) -> None:
    """``fastssl train`` with these options, broken off before its optimizer's step number ``step``.

    ``replaced``: functions of the recipe's module that another one stands for meanwhile.
    """
    from fastssl.train import cli, loop

    class Stop(loop.pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == step:
                raise RuntimeError("stopped")

    make_trainer = loop.make_trainer

    def stopped(*arguments, **how):
        trainer = make_trainer(*arguments, **how)
        trainer.callbacks.insert(0, Stop())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_trainer", stopped)
        for name, function in replaced.items():
            patch.setattr(f"fastssl.train.recipes.{options[0]}.{name}", function)
        with pytest.raises(RuntimeError, match="stopped"):
            cli.train(options)


def assert_same_runs(first: Path, second: Path) -> dict[str, torch.Tensor]:
    """Two runs ended with the same scores and the same bits of weights and buffers, which are returned."""
    ours, theirs = (torch.load(run / "last.ckpt", weights_only=True) for run in (first, second))
    assert ours["fastssl"]["history"] == theirs["fastssl"]["history"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    return ours["state_dict"]
