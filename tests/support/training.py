"""What tests of real training share: whether the packages for it are here, small data, a plain loop, a run that is broken off."""

import dataclasses
import os
import random
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PACKAGES = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard")


needs_train = pytest.mark.skipif(any(find_spec(name) is None for name in PACKAGES), reason="fastssl[train] is not installed")


def part_of(data, share: int, test_share: int):
    """Every ``share``-th training image and every ``test_share``-th test image of ImageData; few labels are chosen among them."""
    from fastssl.train.data import FewLabels, TensorImages

    if isinstance(data.train, FewLabels):
        few, gives_index = data.train, data.train.gives_index
        data = part_of(dataclasses.replace(data, train=few.whole), share, test_share)
        again = FewLabels(data.train, few.per_class, few.seed)
        again.gives_index = gives_index
        return dataclasses.replace(data, train=again)

    def every(half, step):
        part = TensorImages(half.images[::step], half.labels[::step], half.class_names)
        part.gives_index = half.gives_index
        return part

    return dataclasses.replace(data, train=every(data.train, share), test=every(data.test, test_share))


def part_of_sounds(data, share: int, test_share: int):
    """Every ``share``-th training sound and every ``test_share``-th test sound of SoundData."""
    from fastssl.train.sounds import TensorSounds

    def every(half, step):
        return TensorSounds(half.waveforms[::step], half.labels[::step], half.class_names)

    return dataclasses.replace(data, train=every(data.train, share), test=every(data.test, test_share))


def train(module, recipe, epochs: int, batch: int, rate: float = 2e-3) -> list[float]:
    """The mean loss of each epoch."""
    from fastssl.optim import SparseAdam
    from fastssl.train.optimizers import is_sparse

    means = []
    steady = {p for name in recipe.steady for p in module.method.get_submodule(name).parameters()}
    kind = SparseAdam if is_sparse(module.method) else torch.optim.AdamW
    optimizer = kind([p for p in module.method.parameters() if p not in steady])
    fresh = torch.optim.AdamW([*steady, torch.zeros(1)], 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * (len(module.data.train) // batch))
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


@dataclasses.dataclass(frozen=True)
class Training:
    """A short training: scores of held-out data before and after it, and the mean loss of each epoch."""

    before: dict[str, float]
    after: dict[str, float]
    losses: list[float]
    method: torch.nn.Module
    data: object


def train_briefly(
    name: str,
    *,
    epochs: int,
    share: int = 4,
    test_share: int = 2,
    part: Callable = part_of,
    full: bool = False,
    rate: float = 2e-3,
    **options,
) -> Training:
    """Trains a method of ``fastssl train`` on a part of its data and prints what it reached.

    FASTSSL_TEST_SEED chooses other weights, orders and views. Batch norms see training images before the first score, so that it
    is that of an untrained encoder and not of one whose statistics are wrong.

    Args:
        name: the method.
        epochs: passes over the part.
        share, test_share: every which training sample and test sample is taken.
        part: (data, share, test_share) -> the part of the data.
        full: whether the scores hold those that are slow, such as the linear probe.
        rate: peak learning rate.
        options: settings of the method.
    """
    from fastssl.train.recipes import RECIPES

    recipe, seed = RECIPES[name], int(os.environ.get("FASTSSL_TEST_SEED", "0"))
    config = recipe.settings(epochs=epochs, seed=seed, **options)
    data = part(recipe.load(config), share, test_share)
    torch.manual_seed(seed)
    method = recipe.build(config, data)
    views, device = recipe.augment(config, data), torch.device("cpu")
    module = SimpleNamespace(method=method, views=views, config=config, data=data, workers=0, device=device)

    def scores():
        return recipe.monitor(method, data, config, device="cpu", workers=0, most=None, full=full)

    seen = getattr(data, "stills", data).train
    seen = getattr(seen, "whole", seen)  # of few labels
    inputs = getattr(seen, "images", getattr(seen, "waveforms", None))
    if inputs is not None:
        with torch.no_grad():
            for indices in torch.randperm(len(inputs)).split(256):
                method.embed(inputs[indices].float() / (255 if inputs.dtype == torch.uint8 else 1))
    before, started = scores(), time.process_time()
    if recipe.prepare is not None:
        recipe.prepare(module)
    losses = train(module, recipe, epochs, config.batch_size, rate)
    seconds, after = time.process_time() - started, scores()
    shown = "  ".join(f"{key} {before.get(key, float('nan')):.3f} -> {after[key]:.3f}" for key in after)
    print(f"\n{name}, seed {seed}: loss {' '.join(f'{mean:.3f}' for mean in losses)}; {shown}, {seconds:.0f} s of CPU")
    return Training(before, after, losses, method, data)


def assert_resumes_bit_for_bit(
    options: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *, said: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """``fastssl train`` broken off at a step after the first epoch and resumed ends as if it had not been -> the last state.

    ``options``: the method and its options, three epochs of three steps among them. ``folder`` then holds the runs ``whole`` and
    ``parted``. ``said``: what the whole run must print.
    """
    from fastssl.__main__ import main

    options = [*options, "--accelerator", "cpu", "--workers", "0", "--map", "none", "--epochs", "3", "--knn-every", "2"]
    whole, parted = folder / "whole", folder / "parted"
    assert main(["train", *options, "--out", str(whole)]) == 0
    printed = capsys.readouterr()
    assert all(words in printed.out for words in said) and "collapsing" not in printed.err
    stop = random.Random(options[0]).randrange(4, 9)
    train_until(stop, [*options, "--out", str(parted)])
    assert main(["train", *options, "--out", str(parted), "--resume"]) == 0
    assert f"resume: {stop // 3} of 3 epochs" in capsys.readouterr().out
    return assert_same_runs(parted, whole)


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
