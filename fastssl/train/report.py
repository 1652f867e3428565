"""``report.html`` of a run: one page that tells what was trained and what came of it, for a browser, a colleague, an archive.

The page is one file. Its pictures are inside it, because a page with files beside it loses them when it is copied or sent, and
because a later evaluation replaces the pictures of the folder. It loads nothing, runs no script, and forbids its reader's browser
both. All that it shows is in the folder: the checkpoint, ``scores.json``, ``csv/`` and the pictures.
"""

import base64
import functools
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from fastssl._aside import replace_text
from fastssl._ending import visible
from fastssl._version import __version__
from fastssl.train import TrainConfig, warn
from fastssl.train.checkpoints import LAST, config_of, fine_tuning_of, history_of
from fastssl.train.clock import seconds_of
from fastssl.train.layout import counted
from fastssl.train.papers import PAPERS
from fastssl.train.progress import duration
from fastssl.train.recipes import RECIPES
from fastssl.train.report_curves import charts_of, history_table
from fastssl.train.rundir import REPORT, name_beside
from fastssl.train.scores import Scores, Table, read_scores, scores_of, shown
from fastssl.train.settings import Setting, settings_of

PNG = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 16 << 20  # of a picture that the page takes in
PICTURES = {  # a run's pictures in the order of the page: heading, and how to read them
    "map.png": (
        "Map of the features",
        "Each point is a sample, placed so that samples with similar features lie near each other; colour and shape are its class. "
        "Left: the encoder before training. Right: after it. A good encoder gives each class a region of its own.",
    ),
    "retrieval.png": (
        "Nearest neighbours",
        "Each row begins with a test image. Behind it stand the training images whose features are nearest to its own, the nearest "
        "first. Where images have classes, a green frame says that the class is right, an orange one with a cross that it is "
        "another; at the end stands how many are right.",
    ),
    "reconstruction.png": (
        "Reconstructions",
        "Test images as they are, without what was hidden from the method, and as the method painted them from the rest.",
    ),
    "attention.png": (
        "Attention",
        "Test images, and below each what the heads of the last block look at when they sum the image up: white is most, black "
        "least.",
    ),
    "clusters.png": ("Clusters", "Each row shows images that the method puts into the same cluster."),
    "answers.png": ("Answers", "Questions of the training's task about test images, and what the method answered."),
    "colours.png": ("Colours", "Test images in grey as the method saw them, in the colours that it gave them, and in their own."),
    "completions.png": ("Completions", "The upper half of test images, completed by the method, and the true images."),
    "next_frames.png": ("Next frames", "Frames that the method saw, the one that it painted next, and the true one."),
    "colour_tracking.png": (
        "Tracking by colour",
        "A coloured frame, and later frames with the colours that the method carried there.",
    ),
    "spectrograms.png": ("Spectrograms", "Spectrograms of sounds: whole, with hidden patches, and as the method painted them."),
    "few_shot.png": (
        "Few labels",
        "Accuracy on test samples with a few labels of each class, of the untrained and the trained encoder.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A picture inside the page; ``uri`` holds its bytes, ``width`` and ``height`` are in pixels."""

    heading: str
    text: str
    data: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """What the report reads of a run.

    Args:
        folder: where it is kept.
        checkpoint: the name of the checkpoint file there.
        noted: of the checkpoint what is no weight: settings, history, data, seconds of training.
        scores: what is in ``scores.json``.
        own: whether the run in the folder is known by this checkpoint.
    """

    folder: Path
    checkpoint: str
    noted: dict[str, Any]
    scores: Scores
    own: bool = True

    @property
    def config(self) -> TrainConfig:
        return config_of(self.noted)

    @property
    def history(self) -> list[dict]:
        return history_of(self.noted)

    @property
    def epochs(self) -> int:
        return self.history[-1]["epoch"]


def command_of(config: TrainConfig) -> str:
    """The command that trains again with the same settings, without those that are the defaults of this version."""
    words = ["fastssl", "train", config.method]
    for name, setting in settings_of(type(config)).items():
        value = getattr(config, name)
        if value != setting.default and value is not None:
            words.append(setting.flag if value is True else f"{setting.flag}={plain(value)}")
    return shlex.join(words)


def plain(value: Any) -> str:
    """A setting as it is typed on the command line."""
    return ",".join(f"{part:g}" for part in value) if isinstance(value, (list, tuple)) else str(value)


def settings_rows(config: TrainConfig) -> list[tuple[str, str, bool]]:
    """Option, value, and whether it is another one than the default, of each setting of the run."""

    def row(setting: Setting) -> tuple[str, str, bool]:
        value = getattr(config, setting.name)
        by_itself = setting.shown_default.format(unit=RECIPES[config.method].unit) or "-"
        text = by_itself if value is None else ("on" if value else "off") if isinstance(value, bool) else plain(value)
        return setting.flag, text, value != setting.default

    return [row(setting) for setting in settings_of(type(config)).values()]


def facts_of(run: Run) -> list[tuple[str, str]]:
    """What was trained: names and values."""
    config, own, recipe = run.config, run.noted["fastssl"], RECIPES[run.config.method]
    prints = own.get("data") if isinstance(own.get("data"), dict) else {}
    counts = [f"{print_['count']} {name}" for name in ("train", "test") if isinstance(print_ := prints.get(name), dict)]
    known = " and ".join(counts).replace("train", "training")
    classes = len((prints.get("train") or {}).get("classes", ()))
    kinds = f", {classes} classes" if classes > 1 else ""
    size, channels = own.get("image_size"), getattr(config, "channels", 3)
    facts = [("Data", f"{config.data}: {known} {recipe.unit}{kinds}" if known else config.data)]
    if config.backbone:
        facts.append(("Encoder", config.backbone))
    if size:
        facts.append(("Input", f"{size} x {size} pixels, {channels} channel{'s' * (channels != 1)}"))
    facts.append(("Loss", recipe.loss))
    done = f"{run.epochs}" if run.epochs == config.epochs else f"{run.epochs} of {config.epochs}"
    if run.checkpoint != LAST:
        facts.append(("Checkpoint", ", ".join(filter(None, (run.checkpoint, fine_tuning_of(run.noted))))))
    facts += [("Epochs", f"{done}, batch size {config.batch_size}"), ("Optimizer", config.optimizer), ("Seed", str(config.seed))]
    return facts


def is_count(value: Any) -> bool:
    """Whether a value of ``scores.json`` is a number of bytes, parameters or threads that a machine can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def costs_of(run: Run) -> list[tuple[str, str]]:
    """Time, memory, machine and versions, as far as they were noted."""
    seconds, training = seconds_of(run.noted)[-1], run.scores.training or {}
    costs = []
    if seconds is not None:
        each = f", {seconds / run.epochs:.1f} s an epoch" if run.epochs else ""
        costs.append(("Training", f"{duration(seconds)}{each}; without scores and pictures"))
    for name, label in (("memory", "Memory of the process"), ("device_memory", "Memory of the device")):
        if is_count(training.get(name)):
            costs.append((label, f"{training[name] / 2**30:.1f} GiB at most"))
    if is_count(training.get("parameters")):
        costs.append(("Parameters", f"{training['parameters']:,}, those of heads and teachers among them"))
    if "device" in training:
        threads = f", {counted(training['threads'], 'thread')}" if is_count(training.get("threads")) else ""
        costs.append(("Machine", f"{training['device']}{threads}"))
    versions = training.get("versions")
    if isinstance(versions, dict):
        costs.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if "ended" in training:
        costs.append(("Ended", str(training["ended"])))
    return costs


def tiles_of(scores: Table | None) -> list[tuple[str, str, str]]:
    """Label, value and the untrained encoder's value, or "", of the scores at the head of the page: those that training changes."""
    if scores is None:
        return []
    return [
        (label, shown(after, form), "" if before is None else shown(before, form))
        for (label, (before, after)), form in zip(scores.rows, scores.forms, strict=True)
        if before != after or label == scores.rows[0][0]
    ]


def picture_of(path: Path, heading: str, text: str, data: str = "") -> Picture | None:
    """The picture of a PNG file; None where there is no such file, and with a warning where it is none."""
    try:
        if not path.is_file():
            return None
        content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
    except OSError as error:
        warn(f"{path} cannot be read and is left out of the report: {error.strerror}")
        return None
    if not content.startswith(PNG) or len(content) < 24:
        warn(f"{path} is no picture, or has more than {MOST_BYTES >> 20} MiB, and is left out of the report")
        return None
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    return Picture(heading, text, data, f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height)


def pictures_of(run: Run) -> list[Picture]:
    """The pictures of the folder that are of this checkpoint and whole."""
    drawn, found = run.scores.drawn, []
    for name, told in PICTURES.items():
        file = name_beside(Path(run.checkpoint), name, own=run.own)
        if run.own or file in drawn:  # others may be of an earlier file by the checkpoint's name
            found.append(picture_of(run.folder / file, *told, drawn.get(file, "")))
    return [picture for picture in found if picture is not None]


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of the folder ``pages``. They escape markup in a text, and what cannot be printed."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fastssl.train", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )


def rendered(page: str, **values: Any) -> str:
    """A template with these values."""
    made = f"fastssl {__version__}, {time.strftime('%Y-%m-%d %H:%M')}"
    return templates().get_template(page).render(made=made, shown=shown, **values)


def report_of(run: Run) -> str:
    """The page of a run as text."""
    config, paper = run.config, PAPERS[run.config.method]
    scores = scores_of(run.noted, run.checkpoint, run.scores.tables)
    others = [table for table in run.scores.tables if table.question != ("evaluation", config.data, run.checkpoint)]
    return rendered(
        "run.html.jinja",
        title=f"{paper.name} on {config.data}",
        run=run,
        paper=paper,
        facts=facts_of(run),
        command=command_of(config),
        scores=scores,
        tiles=tiles_of(scores),
        others=others,
        charts=charts_of(run.folder, config, run.history),
        history=history_table(config, run.history, seconds_of(run.noted)),
        pictures=pictures_of(run),
        costs=costs_of(run),
        settings=settings_rows(config),
    )


def write_report(path: Path, checkpoint: dict[str, Any], out: Path | None = None, *, own: bool = True) -> Path:
    """Writes the page of a run.

    Args:
        path: the run's checkpoint.
        checkpoint: what it holds; the weights may be left out.
        out: where the page is written; by default beside the checkpoint.
        own: whether the run in the folder is known by this checkpoint; the page of another one has a name of its own.

    Returns:
        The path of the page, which was replaced as a whole.
    """
    target = path.with_name(name_beside(path, REPORT, own=own)) if out is None else out
    return write_page(target, report_of(Run(path.parent, path.name, checkpoint, read_scores(path.parent), own)))


def write_page(path: Path, text: str) -> Path:
    """Writes a page as a whole -> its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return path
