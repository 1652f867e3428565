"""What tests of real training share: whether the packages for it are here, small data, a plain loop."""

import dataclasses
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
