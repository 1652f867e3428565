"""Damaged and hostile checkpoints: each is refused in a sentence, runs no code and gets little memory, or is read as it was.

Four kinds are read as resume and eval read them: a small file cut at every 64th byte, flipped bits, files that were made to do harm
(``hostile.py``), and pickles in which a bit was flipped before the checksums were made. Then checkpoints in which one value is of
another type or size are given to ``fastssl eval`` and to ``fastssl train --resume`` themselves, and with those that were made to do
harm to ``fastssl report``, ``runs``, ``compare`` and ``export``.
"""

import io
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .apart import FAULT, REFUSED, SERVED, apart, command, counted, faults
from .hostile import INFO, archives, entries, odd_values, saved, with_pickle
from .runs import short_run


def small(state: dict) -> bytes:
    """A checkpoint with one number of each weight."""

    def cut(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value.flatten()[:1].clone()
        if isinstance(value, dict):
            return {key: cut(each) for key, each in value.items()}
        return [cut(each) for each in value] if isinstance(value, list) else value

    return saved(cut(state))


def cut_short(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for size in range(0, len(whole), 64):
        yield f"the first {size} bytes", whole[:size]


def flipped(whole: bytes, times: int, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    for _ in range(times):
        at, content = chance.randrange(8 * len(whole)), bytearray(whole)
        content[at // 8] ^= 1 << at % 8
        yield f"bit {at}", bytes(content)


def resealed(whole: bytes, times: int, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    pickled = entries(whole)[INFO]
    for name, content in flipped(pickled, times, chance):
        yield f"{name} of the pickle", with_pickle(whole, content)


def read_one(item: tuple[str, bytes, bytes | None]) -> str:
    """What ``read_checkpoint`` makes of a file; read otherwise than ``whole`` is a fault, where that is given."""
    from fastssl.train.checkpoints import Unreadable, read_checkpoint

    _, content, whole = item
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)
        except Unreadable as error:
            clear = str(path) in str(error) and "\n" not in str(error)
            return f"{REFUSED if clear else FAULT}: {error}"
    same = whole is None or saved_alike(found, torch.load(io.BytesIO(whole), weights_only=True))
    return SERVED if same else f"{FAULT}: read otherwise than it was"


def saved_alike(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(saved_alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(saved_alike, one, other))
    return one == other


def command_one(item: tuple[str, bytes, list[str]]) -> str:
    """What ``fastssl`` makes of a run whose checkpoint is this file: exit code 0, or 2 and one line."""
    _, content, argv = item
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run" / "last.ckpt"
        path.parent.mkdir()
        path.write_bytes(content)
        code, _, said = command([*argv, str(path.parent)])
        kept = path.read_bytes() == content
    if code == 2 and said.count("\n") == 1 and "error: " in said and kept:
        return f"{REFUSED}: {said}"
    return SERVED if code == 0 else f"{FAULT}: exit code {code}, checkpoint kept: {kept}, {said}"


def files(run: Path, times: int, marker: Path) -> dict[str, list]:
    """The kinds of files, each with (name, content, what it was before)."""
    chance = random.Random(times)
    little = small(torch.load(run / "last.ckpt", weights_only=True))
    return {
        "cut": [(*each, little) for each in cut_short(little)],
        "flipped": [(*each, little) for each in flipped(little, times, chance)],
        "hostile": [(*each, None) for each in archives(little, marker)],
        "resealed": [(*each, None) for each in resealed(little, times, chance)],
    }


def by_command(run: Path, images: Path, times: int) -> dict[str, list]:
    """For both commands (name, content, the words before the run's folder)."""
    state, chance = torch.load(run / "last.ckpt", weights_only=True), random.Random(times + 1)
    altered = list(odd_values(state, times, chance))
    data = ["--data", f"folder:{images}"]
    resume = ["train", "simclr", *data, "--accelerator", "cpu", "--workers", "0", "--map", "none", "--epochs", "3", "--resume"]
    evaluate, picture = ["eval", *data, "--map", "none"], str(run.parent / "compare.png")
    hostile = [*altered, *archives(small(state), run.parent / "code was run")]
    return {
        "eval": [(*each, evaluate) for each in altered],
        "resume": [(*each, [*resume, "--out"]) for each in altered],
        "report": [(*each, ["report"]) for each in hostile],
        "runs": [(*each, ["runs"]) for each in hostile],
        "compare": [(*each, ["compare", "--out", picture]) for each in hostile],
        "export": [(*each, ["export", "--to", "torch"]) for each in hostile],
    }


def main(options) -> int:
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        images, run, marker = Path(folder) / "images", Path(folder) / "run", Path(folder) / "code was run"
        short_run("simclr", images, run)
        for kind, items in files(run, options.times, marker).items():
            said = apart(read_one, items)
            if kind in ("cut", "hostile"):  # nothing of them can be what a run wrote
                said = [f"{FAULT}: it was read" if words == SERVED else words for words in said]
            wrong = faults(said, (name for name, *_ in items))
            print(f"checkpoints, {kind}: {len(items)} files, {counted(said)}; {int(marker.exists())} programs run", flush=True)
            bad += wrong + ["code was run"] * marker.exists()
        for kind, items in by_command(run, images, options.times).items():
            said = apart(command_one, items)
            print(f"checkpoints, {kind}: {len(items)} files, {counted(said)}; {int(marker.exists())} programs run", flush=True)
            bad += faults(said, (name for name, *_ in items)) + ["code was run"] * marker.exists()
        shutil.rmtree(folder)
        Path(folder).mkdir()
    print(*bad[: options.examples], sep="\n", end="\n" * bool(bad))
    return len(bad)
