"""``fastssl export RUN --to TARGET``: the backbone of a run under the target's own keys, loaded there and compared before it is
kept."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fastssl._aside import exchanged, folder_aside, remove_left
from fastssl._config import short_text
from fastssl._ending import PLACE, Failure, foreseen, machines_own, out_of_memory, say, visible
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
MOST_OF_CARD = 1 << 20  # bytes


def export(argv: list[str]) -> int:
    """Writes what the command line asks for."""
    given = export_parser().parse_args_and_file(argv)
    PLACE.debug = given.debug
    target = TARGETS[given.to]
    refuse_missing(given.to, target)
    run = load_run(given.run)
    if run.warning:
        say(run.warning, error=True)
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
        if isinstance(error, UsageError) or out_of_memory(error):
            raise
        if (refused := machines_own(error)) is not None:
            raise refused from error
        raise explained(name, error) from error


def refuse_out(out: Path, target: Target) -> None:
    """Raises UsageError for a path that is a file or a folder whose files are not those of an export."""
    if out.suffix in (".pth", ".pt", ".safetensors", ".onnx") or (os.path.lexists(out) and not out.is_dir()):
        raise UsageError(f"--out {out}: must be a folder, for {target.file} and {CARD}")
    if not out.is_dir():
        return
    there = out / CARD
    if not (is_card(there) if there.exists() else not any((out / name).exists() for name in FILES)):
        raise UsageError(f"--out {out}: holds files that fastssl export did not write; name another folder")


def is_card(path: Path) -> bool:
    try:
        return path.is_file() and MARK in short_text(path, MOST_OF_CARD)
    except (OSError, ValueError):  # it cannot be read, is larger than any card, or no text
        return False


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new folder, whose files are in ``out`` when the block ends well; else nothing is left of it.

    The new folder becomes ``out``, or is exchanged with it, in one act, so that files of two exports are never beside each other.
    Only where ``out`` is no folder of its own (``movable``) or holds other files do they move there one by one, the card first.
    """
    try:
        with aside_of(out) as folder:
            yield folder
            out.parent.mkdir(parents=True, exist_ok=True)
            if not takes_place(folder, out):
                for path in sorted(folder.iterdir()):
                    os.replace(path, out / path.name)
    except OSError as error:
        raise Failure(f"--out {out}: could not be written: {foreseen(error) or error.strerror or error}") from error


@contextmanager
def aside_of(out: Path) -> Iterator[Path]:
    """A folder on the disk of ``out``: beside it, or inside where it may not be exchanged; where it will be if it is not there."""
    near = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    for place in (near, *near.parents[:2]):
        remove_left(place)  # of an export that was killed before these folders were there
    with ExitStack() as stack:
        try:
            place = near.parent if out.is_dir() and movable(out) else near
            folder = stack.enter_context(folder_aside(place))
        except OSError as error:
            raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error
        yield folder


def movable(out: Path) -> bool:
    """Whether a folder is one of its own, that may be replaced: no link, no disk, not where this command runs, in one to write."""
    try:
        works_there = Path.cwd().is_relative_to(out.resolve())
    except OSError:
        works_there = True
    return not (works_there or out.is_symlink() or os.path.ismount(out)) and os.access(out.parent, os.W_OK | os.X_OK)


def takes_place(folder: Path, out: Path) -> bool:
    """Makes ``folder`` be ``out`` where that has no other files than it; what ``out`` was is then where ``folder`` was."""
    if not out.exists():
        os.rename(folder, out)
        return True
    new = {path.name for path in folder.iterdir()}
    if folder.parent.samefile(out) or not all(path.name in new and path.is_file() for path in out.iterdir()):
        return False
    shutil.copymode(out, folder)
    return exchanged(folder, out)
