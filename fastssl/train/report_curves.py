"""The curves in the report of a run: from its history, and from the losses of single steps in ``csv/``."""

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

from fastssl._config import short_text
from fastssl.train import TrainConfig, warn
from fastssl.train.chart import Chart, Points, line_chart
from fastssl.train.recipes import RECIPES
from fastssl.train.scores import score_rows

MOST_BYTES = 32 << 20  # of a file of losses: some 500,000 rows
MOST_SHOWN = 1e30
VERSION = re.compile(r"version_(\d+)[/\\]metrics\.csv$")


def number_in(row: dict[str, Any], name: str) -> float:
    """A number of a row of the history or of a CSV file; NaN where it has none, or one that no axis can show."""
    try:
        number = float(row.get(name, math.nan))
    except (TypeError, ValueError):
        return math.nan
    return number if abs(number) <= MOST_SHOWN else math.nan


def csv_files(folder: Path) -> list[Path]:
    """The files in ``csv/``, one for each start of the run, the first start first."""
    numbered = [(int(found[1]), path) for path in folder.glob("csv/version_*/metrics.csv") if (found := VERSION.search(str(path)))]
    return [path for _, path in sorted(numbered)]


def losses_in(path: Path) -> tuple[Points, float]:
    """The steps that were done, and the loss, of each row that has it; and the steps of an epoch, 0 where no row ends one.

    Raises:
        OSError, ValueError, csv.Error: it cannot be read, or is no such file.
    """
    if not path.is_file():
        raise ValueError("it is no file")
    found, length = [], 0.0
    for row in csv.DictReader(io.StringIO(short_text(path, MOST_BYTES))):
        done, loss = number_in(row, "step") + 1, number_in(row, "loss_step")
        if math.isfinite(done) and math.isfinite(loss):
            found.append((done, loss))
        if done > 0 and math.isfinite(number_in(row, "loss")) and number_in(row, "epoch") >= 0:
            length = done / (number_in(row, "epoch") + 1)
    return found, length


def step_losses(folder: Path) -> Points:
    """Place in epochs and loss of each step that ``csv/`` has. A later start of the run replaces the steps that it repeats."""
    steps: dict[float, float] = {}
    length = 0.0
    for path in csv_files(folder):
        try:
            rows, steps_of_epoch = losses_in(path)
        except (OSError, ValueError, csv.Error) as error:
            warn(f"{path} cannot be read and is left out of the report: {error}")
            continue
        found, length = dict(rows), steps_of_epoch or length
        steps = {done: loss for done, loss in steps.items() if done < min(found, default=math.inf)} | found
    return [(done / length, loss) for done, loss in sorted(steps.items()) if done / length <= MOST_SHOWN] if length else []


def charts_of(folder: Path, config: TrainConfig, history: list[dict]) -> list[Chart]:
    """The loss, and each score that the history has more than once and that is no constant."""
    recipe, charts = RECIPES[config.method], []
    if losses := points_of(history, "loss"):
        title = f"{recipe.loss} loss"
        charts.append(line_chart(losses, title=title, text=told(title, losses), faint=step_losses(folder)))
    for name, (title, form) in score_rows(config).items():
        points = points_of(history, name)
        changes = name in recipe.scores or len({value for _, value in points}) > 1  # the guess beside a score may be a constant
        if len(points) > 1 and changes:
            before = (points[0][1], "untrained") if points[0][0] == 0 else None
            how: dict[str, Any] = {"level": before, "form": form, "share": name in recipe.scores}
            charts.append(line_chart(points, title=title, text=told(title, points), **how))
    return charts


def told(title: str, points: Points) -> str:
    """Where a curve begins and ends, as a sentence."""
    (first, begins), (last, ends) = points[0], points[-1]
    return f"{title}: {begins:.3f} in epoch {first} and {ends:.3f} in epoch {last}."


def points_of(history: list[dict], name: str) -> list[tuple[int, float]]:
    return [(row["epoch"], value) for row in history if math.isfinite(value := number_in(row, name))]


def history_table(config: TrainConfig, history: list[dict], seconds: list[float | None]) -> tuple[list[str], list[list[str]]]:
    """The charts as words: the names of the columns, and a row for each epoch."""
    recipe = RECIPES[config.method]
    short = {"loss": ("loss", ".3f")} | {name: (each[0], ".3f") for name, each in recipe.scores.items()}
    short |= {name: (each[0], each[2]) for name, each in recipe.watch.items()}
    kept = {name: how for name, how in short.items() if points_of(history, name)}
    rows = []
    for row, spent in zip(history, seconds, strict=True):
        values = (number_in(row, name) for name in kept)
        cells = [
            format(value, form) if math.isfinite(value) else "-" for value, (_, form) in zip(values, kept.values(), strict=True)
        ]
        rows.append([str(row["epoch"]), *cells, "-" if spent is None else f"{spent:.1f}"])
    return ["epoch", *(name for name, _ in kept.values()), "seconds"], rows
