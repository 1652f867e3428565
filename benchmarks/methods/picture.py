"""One picture of all methods that learn from images: kNN accuracy on the photographs before and after training, and the time."""

from pathlib import Path

from benchmarks.core.machine import ROOT
from benchmarks.methods.runs import all_runs
from fastssl.train.compare import Row, draw_dots
from fastssl.train.recipes import RECIPES

PICTURE = ROOT / "docs" / "pictures" / "methods.png"
SCORE = "knn"


def rows(runs: dict[str, dict]) -> list[Row]:
    """The runs that have a kNN vote on the photographs, the best first."""
    found = []
    for options, run in runs.items():
        first, last = run["history"][0], run["history"][-1]
        if SCORE not in first or RECIPES[options.split()[0]].unit not in ("images", "clips"):
            continue
        found.append(
            Row(
                run=options,
                method=options,
                encoder="",
                data="photos",
                epochs=last["epoch"],
                of=last["epoch"],
                seconds=run["cpu_seconds"],
                score=SCORE,
                heading="",
                first=first[SCORE],
                last=last[SCORE],
                scores={},
                history=[],
            )
        )
    return sorted(found, key=lambda row: -(row.last or 0.0))


def draw(path: Path = PICTURE) -> Path:
    """Draws the picture from the result files -> its path."""
    from fastssl.train.pictures import STYLE, plt, save

    found = rows(all_runs())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(12.5, 0.24 * len(found) + 1.5), layout="constrained")
        draw_dots(axes, found)
        axes[0].set(
            title="weighted kNN (k = 20) on held-out crops of photographs",
            xlabel="accuracy: hollow before training, full at the end; chance is 0.056",
        )
        axes[1].set(title="time of the whole command on one core", xlabel=axes[1].get_xlabel().split()[0])
        save(figure, path)
    return path
