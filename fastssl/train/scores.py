"""``scores.json`` of a run's folder: what its evaluations found, as data, for the report and for programs.

The file has a table for each question that was asked of a checkpoint on some data; the same question asked again replaces the
answer. It also notes what the training itself took and which versions did it.
"""

import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastssl._aside import replace_text
from fastssl._config import short_text
from fastssl._version import __version__
from fastssl.train import TrainConfig, warn
from fastssl.train.checkpoints import config_of, history_of
from fastssl.train.progress import peak_bytes
from fastssl.train.recipes import RECIPES
from fastssl.train.rundir import SCORES, fcntl
from fastssl.train.settings import knn_vote

FORM = re.compile(r"\.\df")
MOST_BYTES, MOST_TABLES = 16 << 20, 1000  # of the file
Value = float | None | tuple[float, float]  # a number, none where it is not known, or a mean and half of its 95 % interval


@dataclass(frozen=True)
class Table:
    """The answer to one question.

    Args:
        task: "evaluation", "few labels", "retrieval" or "fine-tuning".
        heading: what the numbers are.
        data: the name of the data that was asked about.
        checkpoint: the file's name.
        epoch: the last finished epoch of the checkpoint.
        columns: names of the columns.
        rows: a label, and a value for each column.
        names: the rows' names for programs, such as "knn".
        forms: how the numbers of each row are shown, such as ".3f".
    """

    task: str
    heading: str
    data: str
    checkpoint: str
    epoch: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Value, ...]], ...]
    names: tuple[str, ...]
    forms: tuple[str, ...]

    @property
    def question(self) -> tuple[str, str, str]:
        return self.task, self.data, self.checkpoint


def score_rows(config: TrainConfig) -> dict[str, tuple[str, str]]:
    """Name -> label and format of the scores that the method of a run may have."""
    recipe = RECIPES[config.method]
    rows = {name: (label.format(config=config), ".3f") for name, (_, label) in recipe.scores.items()}
    return rows | {name: (label.format(config=config), form) for name, (_, label, form) in recipe.watch.items()}


def untrained_scores(history: list[dict], config: TrainConfig, voters: int) -> dict[str, Any]:
    """The scores of the untrained encoder that stand beside those of now: kNN's only where it voted in the same way."""
    first = history[0] if history and history[0]["epoch"] == 0 else {}
    now = knn_vote(config)
    then = now | {name: first[name] for name in now if name in first}
    same = not now or (min(then["knn_k"], voters), then["knn_t"]) == (min(now["knn_k"], voters), now["knn_t"])
    return {name: value for name, value in first.items() if same or name != "knn"}


def evaluation_table(
    scores: dict[str, float], untrained: dict[str, float], config: TrainConfig, *, data: str, checkpoint: str, epoch: int
) -> Table:
    """The scores of an encoder beside those of the untrained one, as far as these are known; the rest is as ``Table`` has it."""
    rows = {name: row for name, row in score_rows(config).items() if scores.get(name) is not None}
    found = tuple((label, (untrained.get(name), scores[name])) for name, (label, _) in rows.items())
    return Table(
        task="evaluation",
        heading=RECIPES[config.method].heading,
        data=data,
        checkpoint=checkpoint,
        epoch=epoch,
        columns=("untrained", "trained"),
        rows=found,
        names=tuple(rows),
        forms=tuple(form for _, form in rows.values()),
    )


def table_of(values: dict[str, Any]) -> Table:
    """A table as ``scores.json`` has it -> the table. Raises ``TypeError`` or ``ValueError`` for what is none."""
    rows = values["rows"]
    table = Table(
        task=text(values["task"]),
        heading=text(values["heading"]),
        data=text(values["data"]),
        checkpoint=text(values["checkpoint"]),
        epoch=int(values["epoch"]),
        columns=tuple(map(text, values["columns"])),
        rows=tuple((text(label), tuple(map(number, found))) for label, found in rows),
        names=tuple(map(text, values["names"])),
        forms=tuple(map(text, values["forms"])),
    )
    if not len(table.rows) == len(table.names) == len(table.forms):
        raise ValueError("rows, names and forms must be as many")
    if any(len(found) != len(table.columns) for _, found in table.rows):
        raise ValueError("each row must have a value for each column")
    if wrong := [form for form in table.forms if not FORM.fullmatch(form)]:
        raise ValueError(f"a form must be like .3f, got {wrong[0]!r}")
    return table


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be text, got {value!r}")
    return value


def number(value: Any) -> Value:
    """A value of a table. Raises ``TypeError`` for what is none."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return float(value[0]), float(value[1])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"must be a number, got {value!r}")
    return float(value)


def shown(value: Value, form: str) -> str:
    """A value of a table as text.

    Examples:
        >>> shown(0.75, ".3f"), shown((0.5, 0.125), ".2f"), shown(None, ".3f")
        ('0.750', '0.50 ± 0.12', '-')
    """
    if value is None:
        return "-"
    return f"{value[0]:{form}} ± {value[1]:{form}}" if isinstance(value, tuple) else f"{value:{form}}"


@dataclass(frozen=True)
class Scores:
    """What ``scores.json`` holds.

    Args:
        tables: the answers to what was asked of the run.
        drawn: name of a picture in the folder -> name of the data that it shows.
        training: memory, machine and versions of the training, as ``machine`` notes them; {} where they are not known.
    """

    tables: tuple[Table, ...] = ()
    drawn: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def read_scores(folder: Path) -> Scores:
    """The scores of a run's folder; none, with a warning, where the file is damaged."""
    path = folder / SCORES
    try:
        if path.exists() and not path.is_file():
            raise ValueError("is no file")
        found = json.loads(short_text(path, MOST_BYTES))
        drawn, training = found.get("drawn", {}), found.get("training", {})
        if not isinstance(drawn, dict) or not isinstance(training, dict):
            raise TypeError("drawn and training must be objects")
        tables = found.get("tables", ())
        if len(tables) > MOST_TABLES:
            raise ValueError(f"has {len(tables)} tables, more than {MOST_TABLES}")
        return Scores(tuple(map(table_of, tables)), {name: text(data) for name, data in drawn.items()}, training)
    except FileNotFoundError:
        return Scores()
    except (AttributeError, KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
        warn(f"{path} cannot be used and is left out: {type(error).__name__}: {error}")
        return Scores()


def scores_of(checkpoint: dict[str, Any], name: str, tables: Iterable[Table]) -> Table | None:
    """The scores of a checkpoint on the data of its run: those of the last evaluation, or of the history where none followed it.

    Args:
        checkpoint: what it holds.
        name: of its file.
        tables: those of the run's folder.
    """
    config, rows, own = config_of(checkpoint), history_of(checkpoint), checkpoint["fastssl"]
    for table in tables:
        asked = (table.question, table.epoch) == (("evaluation", config.data, name), rows[-1]["epoch"])
        if asked and table.columns == ("untrained", "trained"):
            return table
    names = (*RECIPES[config.method].scores, *RECIPES[config.method].watch)
    scored = [row for row in rows if row["epoch"] > 0 and any(row.get(each) is not None for each in names)]
    if not scored:
        return None
    voters = (own.get("data") or {}).get("train", {}).get("count", 0)
    where = {"data": config.data, "checkpoint": name, "epoch": scored[-1]["epoch"]}
    return evaluation_table(scored[-1], untrained_scores(rows, config, voters), config, **where)


def keep(
    folder: Path,
    *tables: Table,
    drawn: dict[str, str] | None = None,
    training: dict[str, Any] | None = None,
    replaced: Path | None = None,
) -> None:
    """Puts more into the folder's ``scores.json``, in the place of earlier answers to the same questions.

    Args:
        folder: of the run.
        tables, drawn, training: as ``Scores`` has them; of ``drawn`` the pictures that are new.
        replaced: a checkpoint that was written anew; what the file says of the one before is left out.
    """
    with alone(folder):
        known = read_scores(folder)
        if replaced is not None:
            old = tuple(table for table in known.tables if table.checkpoint != replaced.name)
            seen = {name: data for name, data in known.drawn.items() if not name.startswith(f"{replaced.stem}_")}
            known = Scores(old, seen, known.training)
        keep_beside(folder, known, tables, drawn or {}, training)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside this context no other evaluation adds to the folder's file, where the system can lock a folder."""
    with ExitStack() as stack:
        if fcntl is not None:
            try:
                number = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, number)
                fcntl.flock(number, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
        yield


def keep_beside(
    folder: Path, known: Scores, tables: tuple[Table, ...], drawn: dict[str, str], training: dict[str, Any] | None
) -> None:
    """Writes the file with what is known and what is new."""
    asked = {table.question: table for table in (*known.tables, *tables)}
    found = {
        "tables": [asdict(table) for table in asked.values()],
        "drawn": known.drawn | drawn,
        "training": training or known.training,
    }
    replace_text(folder / SCORES, json.dumps(finite(found), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` with None for each number that is NaN or infinite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine(device: torch.device | str) -> dict[str, Any]:
    """What a training took of this machine, and the versions that did it: memory in bytes, names of the device and of versions."""
    device = torch.device(device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    return {
        "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": kind,
        "threads": torch.get_num_threads(),
        "versions": {"fastssl": __version__, "torch": str(torch.__version__), "Python": platform.python_version()},
        **peak_bytes(device),
    }
