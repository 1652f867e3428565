"""What follows a training, and what ``fastssl eval`` does: scores beside those of the untrained encoder, pictures, the report."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fastssl.train import TrainConfig, warn
from fastssl.train.progress import say
from fastssl.train.recipes import RECIPES
from fastssl.train.report import write_report
from fastssl.train.rundir import name_beside
from fastssl.train.scores import evaluation_table, keep, score_rows, untrained_scores
from fastssl.train.settings import changed


def report_corrupt(data: Any) -> None:
    from fastssl.train.data import classes_lost, reading_warnings

    for line in reading_warnings(data):
        warn(line)
    if lost := classes_lost(data):
        warn(f"no file can be used of the {'class' if len(lost) == 1 else 'classes'} {', '.join(lost)}")


def print_scores(scores: dict[str, float], untrained: dict[str, float], config: TrainConfig) -> None:
    """The recipe's scores of the trained method, and those of the untrained one where they are known."""
    heading = RECIPES[config.method].heading
    rows = {name: row for name, row in score_rows(config).items() if name in scores}
    width = max(28, *(len(label) for label, _ in rows.values())) if rows else 28
    say(f"  {heading:<{width}}{'untrained' if untrained else '':>10}{'trained':>10}")
    for name, (label, form) in rows.items():
        before = f"{untrained[name]:{form}}" if name in untrained else "-" if untrained else ""
        say(f"  {label:<{width}}{before:>10}{scores[name]:>10{form}}")


def draw_all(
    method: nn.Module, data: Any, config: TrainConfig, *, where: dict, pictures: Path, kind: str, history: list[dict]
) -> list[Path]:
    """Draws the pictures that there is something to draw for, and gives their paths."""
    from fastssl.train.checkpoints import build_method
    from fastssl.train.pictures import draw_curves, draw_map
    from fastssl.train.retrieval import draw_neighbours

    recipe, drawn = RECIPES[config.method], []
    first, (short, _) = next(iter(recipe.scores.items()))
    if any(row["loss"] is not None for row in history):
        title = f"{short} {recipe.heading}" if recipe.heading.startswith("accuracy") else f"{short}, {recipe.heading}"
        drawn.append(pictures / "curves.png")
        draw_curves(history, drawn[-1], loss=recipe.loss, score=first, title=title)
    if recipe.draw is not None and (path := recipe.draw(method, data, pictures, device=where["device"])) is not None:
        drawn.append(path)
    points = recipe.points(method, data, **where) if kind != "none" else None
    if points is not None and len(points[1]) > 2:
        features, labels, class_names = points
        how = "t-SNE" if kind == "tsne" else "principal components"
        say(f"drawing a map of {len(labels)} embeddings before and after training by {how} ...")
        before = recipe.points(build_method(config, data).to(where["device"]), data, **where)
        assert before is not None  # there are points of the same data
        drawn.append(pictures / "map.png")
        panels = {f"untrained encoder ({how})": before[0], f"trained by {config.method}": features}
        draw_map(panels, labels, class_names, drawn[-1], kind=kind)
        if draw_neighbours(method, data, config, pictures / "retrieval.png", **where):
            drawn.append(pictures / "retrieval.png")
    return drawn


def drawn_beside(checkpoint: Path, draw: Callable[[Path], list[Path]], *, own: bool) -> list[Path]:
    """The pictures that ``draw`` puts into a folder, which becomes that of the checkpoint, with their paths printed.

    ``own``: whether the run there is known by the checkpoint. The names of other checkpoints' pictures begin with theirs.
    """
    folder = checkpoint.parent
    if own:
        drawn = draw(folder)
    else:
        with tempfile.TemporaryDirectory(prefix=".pictures-", dir=folder) as aside:
            drawn = [path.replace(folder / name_beside(checkpoint, path.name, own=False)) for path in draw(Path(aside))]
    if drawn:
        say(f"  pictures    {'  '.join(map(str, drawn))}")
    return drawn


def readable(half: Any) -> int:
    """How many samples there are, without those that could not be read so far."""
    lost = getattr(half, "corrupt_files", None)
    return len(half) - (len(lost()) if lost else 0)


def evaluate(
    method: nn.Module,
    data: Any,
    config: TrainConfig,
    *,
    device: Any,
    workers: int,
    checkpoint: Path,
    noted: dict,
    kind: str,
    history: list[dict],
    training: dict | None = None,
    run: tuple[Path, dict] | None = None,
) -> None:
    """Prints the scores beside those of the untrained encoder, draws the pictures, prints their paths, and writes the report.

    Pictures, scores and report go beside ``checkpoint``, which holds at least what ``noted`` holds; ``training`` is what is kept of
    a training that this follows, and ``run`` the checkpoint that the run in the folder is known by, where that is another one.
    """
    method.to(device)
    recipe, where, own = RECIPES[config.method], {"device": device, "workers": workers}, run is None or run[0] == checkpoint
    say(f"evaluating on {len(data.train)} training and {len(data.test)} test {recipe.unit} ...")
    scores = recipe.monitor(method, data, config, **where, most=None, full=True)
    tables = []
    if scores:
        voters = readable(data.train)
        shown, untrained = (
            changed(config, knn_k=min(getattr(config, "knn_k", voters), voters)),
            untrained_scores(history, config, voters),
        )
        print_scores(scores, untrained, shown)
        of = {"data": data.name, "checkpoint": checkpoint.name, "epoch": noted["fastssl"]["history"][-1]["epoch"]}
        tables.append(evaluation_table(scores, untrained, shown, **of))
    if next(iter(recipe.scores)) not in scores:
        say(f"  {recipe.unscored}")
    how: dict[str, Any] = {"where": where, "kind": kind, "history": history if own else []}
    drawn = drawn_beside(checkpoint, lambda folder: draw_all(method, data, config, pictures=folder, **how), own=own)
    named = {path.name: data.name for path in drawn if path.name != "curves.png"}
    keep(checkpoint.parent, *tables, drawn=named, training=training)
    say(f"  report      {write_report(*(run or (checkpoint, noted)))}")
    report_corrupt(data)
