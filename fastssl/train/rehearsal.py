"""``fastssl train --dry-run``: what would run, where it would be written, and about how long it takes, by a few timed steps."""

import contextlib
import errno
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from fastssl._ending import visible
from fastssl.train import TrainConfig, UsageError
from fastssl.train.layout import counted
from fastssl.train.loop import MethodModule, plain_trainer
from fastssl.train.optimizers import DEFAULT_LR
from fastssl.train.processes import launched
from fastssl.train.progress import duration, peak_memory, say
from fastssl.train.recipes import RECIPES
from fastssl.train.rundir import OWN_FILES, holder

WIDTH = 11
MOST_STEPS, MOST_SECONDS = 12, 10.0  # that are timed, whichever ends first; the first step is not counted


class Timed(Exception):
    """Enough steps were timed."""


class Rehearsal(MethodModule):
    """Trains a few steps and scores once. It writes nothing, keeps no history, and a signal ends it at once."""

    def on_train_start(self) -> None:
        started = time.monotonic()
        self.scored = bool(self.monitor())
        self.scoring = time.monotonic() - started
        if self.recipe.prepare is not None:
            self.recipe.prepare(self)
        self.marks = [time.monotonic()]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.marks.append(time.monotonic())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks.append(time.monotonic())
        done = batch_idx + 1
        if done >= min(MOST_STEPS, self.trainer.num_training_batches) or (
            done > 2 and self.marks[-1] > self.marks[1] + MOST_SECONDS
        ):
            raise Timed

    def on_train_epoch_end(self) -> None:
        """The last step of a short epoch was timed before."""

    def step_seconds(self) -> list[float]:
        """What each step took, the first one only where there is no other."""
        steps = [after - before for before, after in zip(self.marks[1:], self.marks[2:], strict=False)]
        return steps[1:] or steps

    def seconds(self, done: int) -> float:
        """What the epochs after the first ``done`` take, scores included."""
        config = self.config
        epochs = config.epochs - done
        scored = sum(epoch % config.knn_every == 0 or epoch == config.epochs for epoch in range(done + 1, config.epochs + 1))
        rounds = epochs if self.recipe.each_round is not None else 1
        steps = epochs * int(self.trainer.num_training_batches)
        return (
            steps * median(self.step_seconds()) + (scored + (done == 0)) * self.scoring + rounds * (self.marks[1] - self.marks[0])
        )


def count(module: nn.Module) -> str:
    """The number of a module's parameters for a person, such as "2.8 M"."""
    number = sum(p.numel() for p in module.parameters())
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"


def plan(method: nn.Module, config: TrainConfig, data: Any, given: dict[str, Any], processes: int) -> dict[str, str]:
    """What a run is made of, by name."""
    recipe, batch, encoder = RECIPES[config.method], config.batch_size * processes, getattr(method, "backbone", None)
    steps = len(data.train) // processes // config.batch_size
    of = (
        f", {count(encoder)} of them in the encoder {config.backbone}" if isinstance(encoder, nn.Module) and config.backbone else ""
    )
    each = f" on each of {processes} processes" if processes > 1 else ""
    lr = config.lr or DEFAULT_LR[config.optimizer] * batch / 256
    warmup = f"{config.warmup_epochs:g} epoch{'' if config.warmup_epochs == 1 else 's'} of warm-up"
    out = given["out"]
    earlier = not given["resume"] and any((out / name).exists() for name in OWN_FILES)
    return {
        "method": f"{config.method}, {count(method)} parameters{of}",
        "batch": f"{config.batch_size} {recipe.unit}{each}",
        "steps": f"{counted(steps, 'step')} in each of {counted(config.epochs, 'epoch')}, {steps * config.epochs:,} in all",
        "optimizer": f"{config.optimizer}, learning rate {lr:g} after {warmup}; {given['precision']} bits".replace(
            "bf16 bits", "bf16"
        ),
        "folder": f"{out}{', where a run would be set aside' if earlier else ''}",
    }


def refuse_unwritable(out: Path) -> None:
    """Raises UsageError where a run could not be written to ``out``, or another process trains there."""
    if other := holder(out):
        raise UsageError(f"--out {out}: {other} is training there; wait for it, or name another --out")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: cannot be written: {os.strerror(errno.EACCES)}")


def rehearse(
    method: nn.Module, config: TrainConfig, data: Any, given: dict[str, Any], *, workers: int, done: int, processes: int
) -> None:
    """Prints what ``fastssl train`` would do after the first ``done`` epochs, and what it takes."""
    refuse_unwritable(given["out"])
    say("dry run: nothing is written")
    for name, text in plan(method, config, data, given, processes).items():
        say(visible(f"  {name:<{WIDTH}}{text}"))
    if done >= config.epochs:
        return
    if launched().by:
        say(f"  {'time':<{WIDTH}}is estimated without {launched().by} only")
        return
    module = Rehearsal(method, config, data, workers)
    how = {"accelerator": given["accelerator"], "precision": given["precision"], "devices": "1", "num_nodes": 1, "strategy": "auto"}
    trainer = plain_trainer(**how, max_epochs=config.epochs, logger=False, enable_checkpointing=False)
    with contextlib.suppress(Timed):
        trainer.fit(module)
    for name, text in cost(module, done, processes).items():
        say(f"  {name:<{WIDTH}}{text}")


def cost(module: Rehearsal, done: int, processes: int) -> dict[str, str]:
    """What was timed, and what a run of these steps takes after its first ``done`` epochs."""
    steps, on = module.step_seconds(), module.device.type
    scores = f", {module.scoring:.1f} s for the scores of an epoch" if module.scored else ""
    alone = f", without what the {processes} processes exchange" if processes > 1 else ""
    return {
        "timed": f"{median(steps):.3f} s a step on {on} (median of {len(steps)}){scores}{alone}",
        "time": f"about {duration(module.seconds(done))}, and then evaluation, map and pictures",
        "memory": f"{peak_memory(module.device)} so far",
    }
