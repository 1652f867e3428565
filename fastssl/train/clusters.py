"""The picture of DeepCluster's clusters: each row shows training images of one of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.train.augment import as_float
from fastssl.train.evaluate import centre
from fastssl.train.reconstruct import as_colours, mosaic

ROWS, COLUMNS = 10, 12


def shown_clusters(labels: Tensor) -> list[tuple[int, list[int]]]:
    """Clusters and places of their samples, for ``labels`` (N,), -1 for none: at most ``ROWS``, evenly from the largest to the
    smallest, and at most ``COLUMNS`` samples of each, evenly over its own."""
    counts = labels[labels >= 0].bincount()
    order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    chosen = order[torch.linspace(0, len(order) - 1, min(len(order), ROWS), dtype=torch.float64).long()]
    rows = []
    for cluster in chosen.tolist():
        members = (labels == cluster).nonzero().flatten()
        kept = torch.linspace(0, len(members) - 1, min(len(members), COLUMNS), dtype=torch.float64).long()
        rows.append((cluster, members[kept].tolist()))
    return rows


def draw_clusters(labels: Tensor, data: Any, path: Path) -> Path | None:
    """Training images of ``data`` by the clusters ``labels`` (N,) that they are in -> ``path``, or None where none can be read."""
    from fastssl.train.pictures import STYLE, plt, save

    names, rows = [], []
    for cluster, members in shown_clusters(labels):
        images = data.train.__getitems__(members)[0]
        if len(images):
            rows.append(as_colours(centre(as_float(images), data.image_size)))
            names.append(f"cluster {cluster}, {int((labels == cluster).sum())} images")
    if not rows:
        return None
    columns, side = max(map(len, rows)), rows[0].shape[2]
    gap = max(1, side // 10)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.9 * columns + 1, 0.9 * len(rows)))
        axis.imshow(mosaic(rows, gap).numpy(), interpolation="nearest")
        axis.axis("off")
        for i, name in enumerate(names):
            axis.text(-gap, i * (side + gap) + side / 2, name, ha="right", va="center")
        save(figure, path)
    return path
