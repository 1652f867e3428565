"""``fastssl export RUN --to TARGET``: the backbone of a run under the target's own keys, loaded there and compared before it is
kept."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fastssl._ending import PLACE, Failure, foreseen, out_of_memory, say, visible
from fastssl.train import UsageError
from fastssl.train.augment import as_float
from fastssl.train.card import CARD, MARK, card, metadata_of
from fastssl.train.checkpoints import own_checkpoint
from fastssl.train.encoders import LoadedRun, difference, load_run
from fastssl.train.evaluate import centre
from fastssl.train.makers import Maker
from fastssl.train.options import export_parser
from fastssl.train.recipes import RECIPES
from fastssl.train.rundir import name_beside
from fastssl.train.settings import changed
from fastssl.train.targets import TARGETS, Target, explained, fitting, refusal, refuse_missing

T = TypeVar("T")
ROWS = 16  # images on which features are compared
FILES = ("model.pth", "model.safetensors", "model.onnx", "config.json", CARD)


def export(argv: list[str]) -> int:
    """Writes what the command line asks for."""
    given = export_parser().parse_args_and_file(argv)
    PLACE.debug = given.debug
    target = TARGETS[given.to]
    refuse_missing(given.to, target)
    run = load_run(given.run)
    if run.warning:
        say(run.warning.replace("is evaluated", "is exported"), error=True)
    own = own_checkpoint(given.run, run.path, run.checkpoint)[0] == run.path
    out = given.out or run.path.parent / "export" / name_beside(run.path, given.to, own=own)
    refuse_out(out, target)
    maker = maker_for(run, given.to, target)
    images, what = some_images(run)
    say(visible(f"{run.path}: {describe(run)}"))
    with written_aside(out) as folder:
        gaps = write_and_compare(run, target, maker, folder, given.to, images)
        with open(folder / CARD, "w", encoding="utf-8") as file:
            file.write(card(run, target, maker))
    for name, gap in gaps.items():
        say(f"  loaded by {name}: the features of {len(images)} {what} are {closeness(gap)}")
    say(visible(f"  weights     {out / target.file}"))
    say(visible(f"  card        {out / CARD}"))
    return 0


def closeness(gap: float) -> str:
    return f"those of the run up to {gap:.0e} of the largest" if gap else "bit for bit those of the run"


def describe(run: LoadedRun) -> str:
    encoder = run.encoder
    who = f"{encoder.method}, {encoder.backbone_name}" + ("" if encoder.role == "encoder" else f", the {encoder.role}")
    return f"{who}; {encoder.channels} x {encoder.image_size} x {encoder.image_size} pixels -> {encoder.num_features} features"


def maker_for(run: LoadedRun, name: str, target: Target) -> Maker:
    """What makes the model there. Raises UsageError where the encoder is no single backbone or the target does not know it."""
    if not run.encoder.alone:
        what = f"the features of {run.config.method} need more of the method than one backbone"
        raise UsageError(f"RUN {run.path}: {what}, which no other library has; fastssl.load('{run.path.parent}') computes them")
    try:
        maker = fitting(target, run.encoder)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise explained(name, error) from error
    if maker is None:
        raise refusal(name, run.encoder)
    return maker


def some_images(run: LoadedRun) -> tuple[Tensor, str]:
    """Up to ``ROWS`` images of the run's data (B, C, S, S) in [0, 1], and what they are; generated ones where its data are gone."""
    config, encoder = run.config, run.encoder
    try:
        data = RECIPES[config.method].load(changed(config, image_size=encoder.image_size))
        data = getattr(data, "stills", data)
        half = data.test if len(data.test) else data.train
        half = getattr(half, "whole", half)
        images = half.__getitems__(torch.linspace(0, len(half) - 1, min(ROWS, len(half))).long().tolist())[0]
        if len(images) and images.shape[1] == encoder.channels:
            return centre(as_float(images), encoder.image_size), f"images of {data.name}"
    except (UsageError, OSError) as error:
        say(visible(f"warning: {error}; features are compared on generated images"), error=True)
    shape = (ROWS, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)), "generated images"


@torch.no_grad()
def write_and_compare(run: LoadedRun, target: Target, maker: Maker, folder: Path, name: str, images: Tensor) -> dict[str, float]:
    """Writes the target's files -> how far the features are from the run's that each loader makes of the files alone.

    Raises:
        UsageError: the target cannot be written or loaded, or gives other features.
    """
    wanted = getattr(run.method, "embed", run.encoder)(images).flatten(1)
    attempt(name, lambda: target.write(run.encoder, maker, folder, metadata_of(run)))
    gaps = {}
    for library, load in target.read(run.encoder, maker, folder).items():
        gaps[library] = difference(attempt(name, lambda load=load: load()(images)), wanted)  # type: ignore[misc]
        if not gaps[library] <= target.least:
            what = (
                f"loaded by {library} the features differ by {gaps[library]:.1e} of the largest, and {target.least:.0e} is rounding"
            )
            raise UsageError(f"--to {name}: {what}; nothing was written")
    return gaps


def attempt(name: str, act: Callable[[], T]) -> T:
    """``act()``; what the target's libraries say against the encoder becomes one line, an error of the machine stays what it is."""
    try:
        return act()
    except Exception as error:  # each library has its own types
        if isinstance(error, UsageError) or out_of_memory(error) or (isinstance(error, OSError) and foreseen(error)):
            raise
        if isinstance(cause := error.__context__, OSError) and foreseen(cause):  # torch's archive writer raises RuntimeError
            raise cause from error
        raise explained(name, error) from error


def refuse_out(out: Path, target: Target) -> None:
    """Raises UsageError for a path that is a file or a folder whose files are not those of an export."""
    if out.suffix in (".pth", ".pt", ".safetensors", ".onnx") or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: must be a folder, for {target.file} and {CARD}")
    if not out.is_dir():
        return
    there = out / CARD
    ours = not there.exists() or (there.is_file() and MARK in there.read_text(encoding="utf-8", errors="replace"))
    if not ours or (not there.exists() and any((out / name).exists() for name in FILES)):
        raise UsageError(f"--out {out}: holds files that fastssl export did not write; name another folder")


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new folder in ``out``, or where that will be, whose files move to ``out`` when the block ends well; else nothing is left
    of it. ``out`` may be the root of another disk."""
    near = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    try:
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=near))
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error
    try:
        yield folder
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            os.replace(path, out / path.name)
    except OSError as error:
        raise Failure(f"--out {out}: could not be written: {foreseen(error) or error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
