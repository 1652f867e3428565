"""``fastssl runs [FOLDER]``: the runs that lie below a folder, with what became of each."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastssl._config import read_options
from fastssl._ending import PLACE, visible
from fastssl._lines import columns_of, fitting
from fastssl._options import PRINTED
from fastssl.train import UsageError
from fastssl.train.checkpoints import LAST, PREVIOUS, Unreadable, read_checkpoint
from fastssl.train.compare import Row, as_json, row_of
from fastssl.train.options import runs_parser
from fastssl.train.progress import say
from fastssl.train.recipes import RECIPES
from fastssl.train.recipes._images import WATCH
from fastssl.train.rundir import CONFIG, EARLIER, ERROR, LOCK, holder, holds_run
from fastssl.train.scores import read_scores

NEW = Path("runs")  # the default, which the first training makes
DEEPEST = 4  # folders below the given one that are looked into
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
ORDER = {"newest": lambda run: -run.changed, "name": lambda run: run.run, "size": lambda run: -run.bytes}


@dataclass
class Run:
    """A run in the list.

    Args:
        run: its folder.
        state: "running"; "finished"; "failed" with the reason in ``error.txt``; "stopped" by a signal or by a kill; or "damaged".
        changed: when it last wrote a checkpoint, or began, in seconds since 1970.
        bytes: of all files in its folder.
        method, encoder, data: of its settings; "" where they are not known.
        epochs, of: finished epochs, and how many the run was started for.
        seconds: of training so far.
        scores: of the evaluation at the end, else of the last epoch that has any, by name; the first one is what runs of a method
            are compared by.
    """

    run: str
    state: str
    changed: float
    bytes: int
    method: str = ""
    encoder: str = ""
    data: str = ""
    epochs: int = 0
    of: int | None = None
    seconds: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


def run_folders(folder: Path) -> Iterator[Path]:
    """The folders of runs: ``folder`` itself, or what lies below it. Runs that were set aside are left out."""
    for there, folders, files in os.walk(folder):
        path = Path(there)
        if holds_run(path, files):
            yield path
            folders.clear()
        deep = len(path.relative_to(folder).parts) >= DEEPEST
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith(".") and not EARLIER.fullmatch(name))


def record(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint of a run, whose weights stay on the disk; None where there is none. Raises ``Unreadable``."""
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            return read_checkpoint(path, values=False)
        except FileNotFoundError:
            continue
    return None


def newest(*paths: Path) -> float:
    """When the last of these files was written; 0 where there is none."""
    times = [0.0]
    for path in paths:
        with contextlib.suppress(OSError):  # a checkpoint that is renamed meanwhile
            times.append(path.stat().st_mtime)
    return max(times)


def state_of(folder: Path, epochs: int, of: int | None) -> str:
    """What became of a run with so many finished epochs."""
    if holder(folder):
        return "running"
    if of is not None and epochs >= of:
        return "finished"
    error = newest(folder / ERROR)
    return "failed" if error and error >= newest(folder / LOCK) else "stopped"


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for there, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(there, name)).st_size
            except FileNotFoundError:  # a checkpoint that was renamed meanwhile
                continue
    return total


def run_of(folder: Path) -> Run:
    """What the list says of a run."""
    changed = newest(folder / LAST, folder / PREVIOUS) or newest(folder / LOCK)
    run = Run(str(folder), "damaged", changed, size(folder))
    try:
        checkpoint = record(folder)
        if checkpoint is None:
            told = begun(folder)
            run.method, run.encoder, run.data = (told.get(name, "") for name in ("method", "backbone", "data"))
            epochs = told.get("epochs", "")
            run.of = int(epochs) if re.fullmatch("[0-9]{1,18}", epochs) else None
        else:
            row = row_of(folder, checkpoint)[1]
            run.method, run.encoder, run.data, run.epochs, run.of = row.method, row.encoder, row.data, row.epochs, row.of
            first = next(iter(RECIPES[row.method].scores))
            run.seconds, run.scores = (
                row.seconds,
                ({} if row.last is None else {first: row.last}) | row.scores | at_the_end(folder, row),
            )
    except Unreadable:
        return run
    run.state = state_of(folder, run.epochs, run.of)
    return run


def at_the_end(folder: Path, row: Row) -> dict[str, float]:
    """The scores of the evaluation of the run's own checkpoint after its last epoch, on its own data."""
    names = [name for name in (*RECIPES[row.method].scores, *RECIPES[row.method].watch) if name not in WATCH]
    found: dict[str, float] = {}
    for table in read_scores(folder).tables:
        own = table.checkpoint in (LAST, PREVIOUS)  # not of fine_tuned.ckpt
        if own and (table.task, table.data, table.epoch) == ("evaluation", row.data, row.epochs) and "trained" in table.columns:
            place = table.columns.index("trained")
            values = {name: values[place] for name, (_, values) in zip(table.names, table.rows, strict=True)}
            found |= {name: value for name in names if isinstance(value := values.get(name), float)}
    return found


def begun(folder: Path) -> dict[str, str]:
    """The options of a run that has no checkpoint yet."""
    path = folder / CONFIG
    try:
        options = read_options(path) if path.is_file() else {}
        return {name: value for name, value in options.items() if isinstance(value, str)}
    except UsageError:  # of an earlier version, or damaged
        return {}


def in_order(runs: Iterable[Run], by: str) -> list[Run]:
    """Those that are running first, and the rest by what ``--sort`` names; by the score, runs of the same kind stay together."""
    if by != "score":
        return sorted(runs, key=lambda run: (run.state != "running", ORDER[by](run), run.run))

    def best(run: Run) -> tuple:
        name, value = next(iter(run.scores.items()), ("~", 0.0))
        return name, run.data, -value, run.run

    return sorted(runs, key=best)


def age(seconds: float) -> str:
    """A time span in its largest unit, such as "3 h"."""
    unit, length = next((pair for pair in UNITS if seconds >= pair[1]), UNITS[-1])
    return f"{max(0, int(seconds // length))} {unit}"


def weight(count: int) -> str:
    """A number of bytes, such as "12.3 MB"."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def cells_of(run: Run, folder: Path) -> tuple[str, ...]:
    """The row of a run: its path below the folder of the list, and the rest."""
    recipe = RECIPES.get(run.method)
    short = {} if recipe is None else {name: each[0] for name, each in (recipe.scores | recipe.watch).items()}
    scores = "  ".join(f"{short.get(name, name)} {value:.3f}" for name, value in run.scores.items())
    done = f"{run.epochs}" if run.epochs == run.of else f"{run.epochs} of {'?' if run.of is None else run.of}"
    path = Path(run.run)
    name = str(path.relative_to(folder)) if path != folder else run.run
    what = (
        run.method or "-",
        run.encoder or "-",
        run.data or "-",
        "-" if run.state == "damaged" else done,
        run.state,
        scores or "-",
    )
    return name, *what, weight(run.bytes), age(time.time() - run.changed)


HEAD = ("run", "method", "encoder", "data", "epochs", "state", "scores", "size", "age")
SPARE = (7, 2, 4)  # that are left out where that is not enough: size, encoder, epochs
FLEXIBLE = (3, 0)  # columns that are shortened where a line is wider than the terminal: the data, then the name


def runs(argv: list[str]) -> int:
    """Prints the list as a table or as JSON, or writes it to a file."""
    given = runs_parser().parse_args_and_file(argv)
    PLACE.debug = given.debug
    if given.json is not None and given.json.is_dir() and not given.folder.is_dir():  # the word after --json is the folder
        given.folder, given.json = given.json, PRINTED
    if not given.folder.exists() and given.folder == NEW:
        raise UsageError("there is no folder runs here, which fastssl train makes; fastssl runs FOLDER lists those of another")
    if not given.folder.is_dir():
        raise UsageError(f"FOLDER {given.folder}: {'is no folder' if given.folder.exists() else 'there is no such folder'}")
    found = in_order((run_of(path) for path in run_folders(given.folder)), given.sort)
    if given.json == PRINTED:
        as_json(found, PRINTED)
        return 0
    if not found:
        say(visible(f"no runs in {given.folder}"))
    else:
        rows = [tuple(map(visible, cells_of(run, given.folder))) for run in found]
        for line in fitting([HEAD, *rows], FLEXIBLE, columns_of(sys.stdout), SPARE):
            say(line)
    if given.json is not None:
        as_json(found, given.json)
    return 0
