"""``fastssl compare RUN RUN ...``: a table of runs, and a plot of their scores against time and epochs.

Scores stand side by side where they are the same score of the same data: runs that differ in that get a table and a row of the plot
for each kind.
"""

import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastssl._aside import replace_text
from fastssl._ending import PLACE, visible
from fastssl._lines import columns_of, fitting
from fastssl._options import PRINTED
from fastssl.train import UsageError
from fastssl.train.checkpoints import config_of, history_of, readable_checkpoint
from fastssl.train.clock import seconds_of
from fastssl.train.options import compare_parser
from fastssl.train.progress import duration, say
from fastssl.train.recipes import RECIPES
from fastssl.train.recipes._images import WATCH
from fastssl.train.settings import knn_vote

PICTURE = Path("compare.png")
MOST_LINES = 7  # runs of one kind that have a line each, with a colour of its own and a name beside it
MOST_KINDS = 6


@dataclass(frozen=True)
class Kind:
    """What runs have in common whose scores can be compared: the score, and the data that it is of."""

    score: str  # its name in the history
    label: str
    data: str  # a digest of what is scored, or the name of the data where an earlier version noted no digest
    image_size: int | None
    channels: int
    vote: tuple[tuple[str, Any], ...]  # how the neighbours of a kNN vote


@dataclass(frozen=True)
class Row:
    """A run in the table.

    Args:
        run: the path that was given.
        method, encoder, data: of the run's settings.
        epochs, of: finished epochs, and how many the run was started for.
        seconds: of training so far; None where the run was begun by a version that did not note them.
        score, heading: how the table of a run calls the score, and what it is of.
        first: that of the untrained encoder; None where it is not known, or where its neighbours voted in another way.
        last: the newest one; None where nothing was scored since the training began.
        scores: the other scores of the last epoch that has any.
        history: epoch, seconds and score of each epoch that was scored.
    """

    run: str
    method: str
    encoder: str
    data: str
    epochs: int
    of: int
    seconds: float | None
    score: str
    heading: str
    first: float | None
    last: float | None
    scores: dict[str, float]
    history: list[dict[str, Any]]


def row_of(run: Path, checkpoint: dict) -> tuple[Kind, Row]:
    """What the table says of a run."""
    config, rows, own = config_of(checkpoint), history_of(checkpoint), checkpoint["fastssl"]
    recipe, seconds = RECIPES[config.method], seconds_of(checkpoint)
    score, (_, label) = next(iter(recipe.scores.items()))
    label, prints = label.format(config=config), own.get("data") or {}
    test = prints.get("scored") or prints.get("test") or {}
    data, channels = test.get("digest", config.data), getattr(config, "channels", 3)
    kind = Kind(score, label, data, own.get("image_size"), channels, tuple(knn_vote(config).items()))
    scored = [
        {"epoch": row["epoch"], "seconds": spent, "score": row[score]}
        for row, spent in zip(rows, seconds, strict=True)
        if row.get(score) is not None
    ]
    others = [name for name in (*recipe.scores, *recipe.watch) if name != score and name not in WATCH]
    trained = [row for row in rows if row["epoch"] > 0 and any(name in row for name in (score, *others))]
    last: dict[str, Any] = trained[-1] if trained else {}
    names = [name for name in others if name in last]
    vote = {name: value for name, value in knn_vote(config).items() if name in rows[0]}
    same = score != "knn" or all(rows[0][name] == value for name, value in vote.items())
    return kind, Row(
        run=str(run),
        method=config.method,
        encoder=config.backbone,
        data=config.data,
        epochs=rows[-1]["epoch"],
        of=config.epochs,
        seconds=seconds[-1],
        score=label,
        heading=recipe.heading,
        first=rows[0].get(score) if rows[0]["epoch"] == 0 and same else None,
        last=scored[-1]["score"] if scored and scored[-1]["epoch"] > 0 else None,
        scores={name: last[name] for name in names},
        history=scored,
    )


def found_runs(given: Iterable[Path]) -> list[Path]:
    """The runs that were given, each once. A path that is not there may be a pattern such as ``runs/*``."""
    runs: list[Path] = []
    for path in given:
        matching = [] if path.exists() else [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
        if matching:  # a pattern also matches what is no run
            matching = [found for found in matching if found.suffix == ".ckpt" or any(found.glob("*.ckpt"))] or matching[:1]
        runs += matching or [path]
    return list({run.resolve(): run for run in reversed(runs)}.values())[::-1]


def readable_runs(given: Iterable[Path]) -> Iterator[tuple[Path, Path, dict]]:
    """The runs that were given: path, path of the checkpoint, and what it holds."""
    for run in found_runs(given):
        path, checkpoint, warning = readable_checkpoint(run)
        if warning:
            say(warning, error=True)
        yield run, path, checkpoint


def by_kind(found: Iterable[tuple[Kind, Row]]) -> dict[Kind, list[Row]]:
    """The rows of each kind, the best last score first."""
    kinds: dict[Kind, list[Row]] = {}
    for kind, row in found:
        kinds.setdefault(kind, []).append(row)
    if len(kinds) > MOST_KINDS:
        named = sorted({f"{row.data} ({kind.label})" for kind, rows in kinds.items() for row in rows})
        what = f"{len(kinds)} kinds of data and scores, at most {MOST_KINDS} fit into a picture"
        raise UsageError(f"RUN: {what}; compare fewer of them at once: {', '.join(named[:MOST_KINDS])}, ...")
    return {kind: sorted(rows, key=lambda row: -1.0 if row.last is None else -row.last) for kind, rows in kinds.items()}


def names_of(rows: Sequence[Row]) -> list[str]:
    """A short name for each run: its method, and what tells it from others of the method: folder, or whole path."""
    names = [row.method for row in rows]
    folders = [Path(row.run).parent.name if Path(row.run).suffix == ".ckpt" else Path(row.run).name for row in rows]
    names = [name if names.count(name) == 1 else f"{name} {folder}" for name, folder in zip(names, folders, strict=True)]
    names = [name if names.count(name) == 1 else f"{row.method} {row.run}" for name, row in zip(names, rows, strict=True)]
    return list(map(visible, names))


def heading_of(kind: Kind, rows: Sequence[Row]) -> str:
    """What a table and its panels show: the score, the data, the size of the images."""
    size = f", {kind.image_size} x {kind.image_size}" if kind.image_size else ""
    bands = f" x {kind.channels} channels" if kind.channels != 3 else ""
    headings, data = (", ".join(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("heading", "data"))
    return f"{kind.label}, {headings}; {data}{size}{bands}"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


FLEXIBLE = (3, 0)  # columns that are shortened where a line is wider than the terminal: the data, then the run
SPARE = (8, 2, 5)  # that are left out where that is not enough: other scores, encoder, time
COLUMNS = ("run", "method", "encoder", "data", "epochs", "training", "untrained", "last", "other scores")


def cells_of(row: Row) -> tuple[str, ...]:
    """What the table says of a run, a text for each of ``COLUMNS``."""
    epochs = str(row.epochs) if row.epochs == row.of else f"{row.epochs} of {row.of}"
    time = "-" if row.seconds is None else duration(row.seconds)
    recipe = RECIPES[row.method]
    short = {name: each[0] for name, each in (recipe.scores | recipe.watch).items()}
    others = ", ".join(f"{short[name]} {value:.3f}" for name, value in row.scores.items())
    return row.run, row.method, row.encoder or "-", row.data, epochs, time, shown(row.first), shown(row.last), others or "-"


def print_table(kind: Kind, rows: Sequence[Row]) -> None:
    say(visible(heading_of(kind, rows)))
    cells, width = [tuple(map(visible, row)) for row in (COLUMNS, *map(cells_of, rows))], columns_of(sys.stdout)
    for line in fitting(cells, FLEXIBLE, width and width - 2, SPARE):
        say(f"  {line}")


def draw_compare(kinds: dict[Kind, list[Row]], path: Path) -> None:
    """A row of two panels for each kind: lines with their names where these fit, or else sorted dots of untrained and trained."""
    from fastssl.train.pictures import STYLE, plt, save

    heights = [3.9 if len(rows) <= MOST_LINES else 0.24 * len(rows) + 1.2 for rows in kinds.values()]
    with plt.rc_context(STYLE):
        how: Any = {"height_ratios": heights, "squeeze": False, "layout": "constrained"}
        figure, axes = plt.subplots(len(kinds), 2, figsize=(12.5, sum(heights) + 0.3), **how)
        for pair, (kind, rows) in zip(axes, kinds.items(), strict=True):
            draw = draw_lines if len(rows) <= MOST_LINES else draw_dots
            draw(pair, rows)
            pair[0].set_title(visible(heading_of(kind, rows)))
        save(figure, path)


def time_unit(seconds: Iterable[float]) -> tuple[str, float]:
    """The unit in which an axis shows times, and how many seconds it has."""
    return ("minutes", 60.0) if max(seconds, default=0.0) >= 120 else ("seconds", 1.0)


def draw_lines(axes: Sequence[Any], rows: Sequence[Row]) -> None:
    """Score against epochs, and against the time of training, with the names of the runs at the right."""
    from fastssl.train.pictures import MaxNLocator, class_style, label_ends

    known = [each["seconds"] for row in rows for each in row.history if each["seconds"] is not None]
    unit, length = time_unit(known)
    ends = {}
    for i, (row, name) in enumerate(zip(rows, names_of(rows), strict=True)):
        style = {**class_style(i), "markersize": 4}
        for axis, place, scale in ((axes[0], "epoch", 1.0), (axes[1], "seconds", length)):
            points = [(each[place] / scale, each["score"]) for each in row.history if each[place] is not None]
            axis.plot([x for x, _ in points], [y for _, y in points], **style)
        if row.history:
            ends[name] = (row.history[-1]["score"], style["color"])
    for axis, label in ((axes[0], "epoch"), (axes[1], f"{unit} of training")):
        axis.grid(axis="y", color="0.9")
        axis.set(xlabel=label, xlim=(0, None))
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if not known:
        axes[1].text(0.5, 0.5, "no times: runs of an earlier version", ha="center", transform=axes[1].transAxes, color="0.35")
    axes[1].figure.draw_without_rendering()  # lays the panels out, so that their heights are known
    label_ends(axes[1], ends)


def draw_dots(axes: Sequence[Any], rows: Sequence[Row]) -> None:
    """The runs from the best at the top: their untrained and last score, and beside that the time of training."""
    from fastssl.train.pictures import COLOURS

    places, lasts = range(len(rows)), [row.last for row in rows]
    unit, length = time_unit(row.seconds for row in rows if row.seconds is not None)
    for y, row in zip(places, rows, strict=True):
        if row.first is not None and row.last is not None:
            axes[0].plot([row.first, row.last], [y, y], color="0.8", linewidth=1.5, zorder=1)
    firsts = [(row.first, y) for y, row in zip(places, rows, strict=True) if row.first is not None]
    last = [(x, y) for y, x in zip(places, lasts, strict=True) if x is not None]
    hollow, full = {"color": "white", "edgecolors": "0.4", "zorder": 2}, {"color": COLOURS[5], "zorder": 3}
    for points, style in ((firsts, hollow), (last, full)):
        axes[0].scatter([x for x, _ in points], [y for _, y in points], s=26, **style)
    for x, y in last:
        axes[0].annotate(f"{x:.3f}", (1.0, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center")
    times = [(row.seconds / length, y) for y, row in zip(places, rows, strict=True) if row.seconds is not None]
    for y in (y for y, row in zip(places, rows, strict=True) if row.seconds is None):
        axes[1].annotate("not known", (0, y), (4, 0), textcoords="offset points", va="center", color="0.35")
    axes[1].barh([y for _, y in times], [x for x, _ in times], height=0.6, color=COLOURS[0])
    axes[0].set(yticks=places, yticklabels=names_of(rows), xlabel="score: hollow before training, full at the end")
    axes[1].set(yticks=[], xlabel=f"{unit} of training", xlim=(0, None))
    for axis in axes:
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)


def refuse_place(option: str, path: Path) -> None:
    """Raises UsageError for what a file may not take the place of: a directory, a device such as /dev/stdout."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a directory; name a file in it")
    if os.path.lexists(path) and (not path.is_file() or Path("/dev") in path.absolute().parents):
        raise UsageError(f"{option} {path}: is a device, a pipe or a broken link, which would be replaced; name a file")


def as_json(rows: Iterable[Any], place: Path) -> None:
    """Prints dataclasses as JSON, or writes them to a file."""
    text = json.dumps([asdict(row) for row in rows], indent=1)
    if place == PRINTED:
        say(text)
        return
    refuse_place("--json", place)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_text(place, text + "\n")
    say(visible(f"  table       {place}"))


def compare(argv: list[str]) -> int:
    """Prints the tables, draws the plot, and prints or writes the table as data where ``--json`` asks for it."""
    given = compare_parser().parse_args_and_file(argv)
    PLACE.debug = given.debug
    if given.json is not None and (given.json.is_dir() or given.json.suffix == ".ckpt"):  # the word after --json is a run
        given.runs, given.json = [given.json, *given.runs], PRINTED
    printed = given.json == PRINTED
    out = given.out or (None if printed else PICTURE)
    if out is not None:
        refuse_place("--out", out)
        if out.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise UsageError(f"--out {out}: must end with .png, .pdf or .svg")
    kinds = by_kind(row_of(run, checkpoint) for run, _, checkpoint in readable_runs(given.runs))
    if not printed:
        for kind, rows in kinds.items():
            print_table(kind, rows)
    if given.json is not None:
        as_json((row for rows in kinds.values() for row in rows), given.json)
    if out is not None:
        draw_compare(kinds, out)
        say(visible(f"  picture     {out}"), error=printed)
    return 0
