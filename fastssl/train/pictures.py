"""The pictures of a run: ``curves.png``, loss and score by epoch, and ``map.png``, test embeddings before and after."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from fastssl._aside import replaced

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe and Ito, yellow left out
MARKERS = ("o", "^", "s", "D", "v", "P", "X")  # shape tells classes apart where colour comes round again
MOST_POINTS = 1000
MOST_CLASSES = 30  # a legend of more is no longer read

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.dpi": 120,
    "savefig.bbox": "tight",
    "text.parse_math": False,  # names of folders and classes may hold dollar signs
}


def class_style(label: int) -> dict:
    """Colour and marker of a class; the first 49 classes are all different."""
    return {"color": COLOURS[label % len(COLOURS)], "marker": MARKERS[(3 * (label // len(COLOURS)) + label) % len(MARKERS)]}


def draw_curves(history: list[dict], path: Path, *, loss: str, score: str, title: str) -> None:
    """Loss by epoch, and beside it ``score`` of the history with the untrained encoder's as a dashed line."""
    losses = [(row["epoch"], row["loss"]) for row in history if row.get("loss") is not None]
    scores = [(row["epoch"], row[score]) for row in history if row.get(score) is not None]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2 if scores else 1, figsize=(10 if scores else 5.5, 3.8), squeeze=False)
        loss_axis = axes[0, 0]
        loss_axis.plot(*zip(*losses, strict=True), color=COLOURS[0], marker="o", markersize=4)
        loss_axis.set(title=f"{loss} loss, mean of the epoch", xlabel="epoch", ylabel="loss")
        if scores:
            axis = axes[0, 1]
            axis.plot(*zip(*scores, strict=True), color=COLOURS[5], marker="o", markersize=4)
            ends = {"trained": (scores[-1][1], COLOURS[5])}
            if scores[0][0] == 0:
                axis.axhline(scores[0][1], color="0.45", linestyle="--", linewidth=1)
                ends["untrained"] = (scores[0][1], "0.35")
            axis.set(title=title, xlabel="epoch", ylim=(0, 1.08))
            label_ends(axis, ends)
        for axis in axes.flat:
            axis.grid(axis="y", color="0.9")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(losses) == 1:
            loss_axis.set_xticks([losses[0][0]])
        save(figure, path)


def label_ends(axis: Any, ends: dict[str, tuple[float, str]]) -> list:
    """Writes names and values at the right of an axis. ``ends``: name -> value, colour.

    Each text stands at the height of its value, or higher where it would lie on another one, or lower where there is no room above.
    """
    low, high = axis.get_ylim()
    points = 72 / axis.figure.dpi * axis.get_window_extent().height / (high - low)
    texts, ordered = [], sorted(ends.items(), key=lambda end: end[1][0])
    heights = stacked([value * points for _, (value, _) in ordered], 1.4 * plt.rcParams["font.size"], high * points)
    for (name, (value, colour)), height in zip(ordered, heights, strict=True):
        how = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "color": colour}
        texts.append(axis.annotate(f"{name} {value:.3f}", (1, value), (6, height - value * points), **how))
    return texts


def stacked(heights: list[float], gap: float, top: float) -> list[float]:
    """Rising heights, moved up until ``gap`` lies between each two, and down again where the highest is then above ``top``.

    Examples:
        >>> stacked([0.0, 1.0, 9.0], gap=2.0, top=10.0), stacked([8.0, 9.0, 9.0], gap=2.0, top=10.0)
        ([0.0, 2.0, 9.0], [6.0, 8.0, 10.0])
    """
    risen, lowest = [], -np.inf
    for height in heights:
        risen.append(max(height, lowest))
        lowest = risen[-1] + gap
    placed, highest = [], max(top, heights[-1] if heights else top)
    for height in reversed(risen):
        placed.append(min(height, highest))
        highest = placed[-1] - gap
    return placed[::-1]


def plane(features: np.ndarray, kind: str) -> np.ndarray:
    """(N, D) -> (N, 2): t-SNE of cosine distances ("tsne") or the first two principal components ("pca")."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    rows = normalize(features)
    if kind == "pca" or len(rows) < 10:
        return PCA(2, random_state=0).fit_transform(rows)
    rows = PCA(min(30, *rows.shape), random_state=0).fit_transform(rows)
    return TSNE(perplexity=min(30, len(rows) / 4), init="pca", max_iter=600, random_state=0).fit_transform(rows)


def draw_map(panels: dict[str, Tensor], labels: Tensor, class_names: tuple[str, ...], path: Path, *, kind: str = "tsne") -> None:
    """One scatter for each title: features (N, D) of the same N images with labels (N,), side by side, and one legend.

    Every class has its own colour and marker. Of more than ``MOST_POINTS`` images, that many are drawn, evenly spaced.
    """
    kept = torch.linspace(0, len(labels) - 1, min(len(labels), MOST_POINTS), dtype=torch.float64).long()
    classes = labels.cpu()[kept].numpy()
    shown = np.unique(classes)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 6), squeeze=False, layout="constrained")
        for axis, (title, features) in zip(axes.flat, panels.items(), strict=True):
            points = plane(features.cpu()[kept].numpy(), kind)
            for label in shown:
                name = class_names[label] if 1 < len(class_names) <= MOST_CLASSES else None
                axis.scatter(
                    *points[classes == label].T,
                    s=26,
                    alpha=0.8,
                    linewidths=0.3,
                    edgecolors="white",
                    label=name,
                    **class_style(int(label)),
                )
            axis.set(title=title, xticks=[], yticks=[], box_aspect=1)
            axis.spines[:].set_visible(False)
        handles, names = axes[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, names, loc="outside right center", frameon=False, markerscale=1.5, ncols=1 if len(shown) <= 20 else 2
            )
        save(figure, path)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name in a script that the font lacks shows as boxes
        for text in figure.findobj(Text):  # a name that is no UTF-8, which the font cannot take
            text.set_text(text.get_text().encode(errors="backslashreplace").decode())
        with replaced(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower())
    plt.close(figure)
