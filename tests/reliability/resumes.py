"""A run that a signal stops after step k and that goes on has, from step k + 1 on, the losses of one that was not stopped."""

import functools
import os
import random
import signal
import tempfile
from pathlib import Path

import torch

from .apart import command
from .kills import run
from .runs import SMALL, write_grey_classes

METHODS = ("simclr", "moco", "byol", "dino", "mae", "clip")
EPOCHS = 3
STEPS = {"clip": 2}  # of an epoch, and three of the others
STOPPED = 128 + signal.SIGTERM


def noted(path: Path, stop: int) -> None:
    """From now on this process writes the loss of each step to ``path``, as exact text, and gets SIGTERM in the step ``stop``."""
    from fastssl.train import data, loop

    step = loop.Steps.step
    data.PHOTOS_TRAIN, data.PHOTOS_TEST = 6, 2  # for clip, whose captions are of the built-in photographs

    def note(steps, loss):
        step(steps, loss)
        with path.open("a") as file:
            file.write(f"{steps.done} {loss.item().hex()}\n")
        if steps.done == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.Steps.step = note


def options_of(name: str, images: Path) -> list[str]:
    small = [*SMALL, "--epochs", str(EPOCHS)]
    if name == "clip":
        return ["train", name, *small, "--batch-size", "54"]
    return ["train", name, "--data", f"folder:{images}", *small]


def losses(argv: list[str], folder: Path, stop: int, log: Path) -> tuple[list[str], str]:
    """The lines of the losses of a run that is stopped after a step (0: of none) and goes on, and what went wrong."""
    path = folder / "losses"
    status, _ = run([*argv, "--out", str(folder)], log, prepare=functools.partial(noted, path, stop))
    code = os.waitstatus_to_exitcode(status)
    if code != (STOPPED if stop else 0):
        return [], f"exit code {code}: {log.read_text()[-300:]}"
    if stop:
        status, _ = run([*argv, "--out", str(folder), "--resume"], log, prepare=functools.partial(noted, path, 0))
        if status:
            return [], f"resume: exit code {os.waitstatus_to_exitcode(status)}: {log.read_text()[-300:]}"
    return path.read_text().split("\n"), ""


def check(name: str, folder: Path, images: Path, stops: list[int]) -> list[str]:
    """What is wrong with the losses of a method that is stopped after each of these steps."""
    argv, log = options_of(name, images), folder / "log"
    (folder / "whole").mkdir()
    whole, wrong = losses(argv, folder / "whole", 0, log)
    found = [wrong] if wrong else []
    for stop in stops:
        (folder / str(stop)).mkdir()
        parted, wrong = losses(argv, folder / str(stop), stop, log)
        if wrong or parted != whole:
            found.append(f"{name}, stopped after step {stop}: {wrong or 'other losses'}")
    return found


def main(options) -> int:
    torch.set_num_threads(1)
    bad, count, chance = [], 0, random.Random(options.times)
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        write_grey_classes(images)
        command(["train", "simclr", "--data", f"folder:{images}", *SMALL, "--epochs", "1", "--out", f"{place}/first"])
        for name in METHODS:
            most = EPOCHS * STEPS.get(name, 3) - 1
            stops = sorted(chance.sample(range(1, most + 1), min(options.times, most)))
            (folder := Path(place) / name).mkdir()
            wrong = check(name, folder, images, stops)
            print(f"resumes, {name}: stopped after steps {', '.join(map(str, stops))}; {len(wrong)} with other losses", flush=True)
            bad, count = bad + wrong, count + len(stops)
    print(f"resumes: {len(METHODS)} methods, {count} stops, {count} resumes, {len(bad)} with other losses")
    print(*bad, sep="\n", end="\n" * bool(bad))
    return len(bad)
