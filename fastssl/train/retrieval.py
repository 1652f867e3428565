"""``fastssl eval RUN --retrieve``: the training images nearest to test images, as a picture and in numbers.

The training images are ordered by the cosine of their features with those of a query, the nearest first. r_i is 1 where image i of
that order has the query's class and 0 elsewhere, R the sum of all r_i. Precision@k = (r_1 + ... + r_k) / k, and average precision =
1/R sum_i r_i (r_1 + ... + r_i) / i. Both are averaged over the queries.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from fastssl.train import TrainConfig
from fastssl.train.augment import as_float
from fastssl.train.data import limited
from fastssl.train.downstream import ENCODERS, Half, TrainedRun
from fastssl.train.evaluate import KNN_CHUNK, centre
from fastssl.train.progress import say
from fastssl.train.recipes import RECIPES
from fastssl.train.reconstruct import as_colours, mosaic
from fastssl.train.samples import ImageSamples, Samples
from fastssl.train.scores import Table, keep

TOP, MOST_ROWS, MOST_SHOWN = 10, 20, 20
FRAMES = {True: (0.0, 0.62, 0.45), False: (0.84, 0.37, 0.0)}  # of right and of wrong classes, for all eyes
QUERY = (0.35, 0.35, 0.35)
CROSS: Any = {"s": 42, "marker": "X", "color": FRAMES[False], "edgecolors": "white", "linewidths": 0.8}
AVERAGE = "mean average precision"
MOST_BANK, UNLABELLED_ROWS = 5000, 10  # of the picture after a training: images of each half, and rows without classes


def ranking(queries: Tensor, bank: Tensor) -> Tensor:
    """queries (N, D), bank (M, D) -> (N, M) indices of the bank rows, the nearest by the cosine first."""
    cosine = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    return cosine.argsort(dim=1, descending=True, stable=True)


def retrieval_scores(queries: Half, bank: Half, k: int) -> tuple[float, float]:
    """Precision@k and mean average precision of the queries whose class the bank has.

    Args:
        queries: features (N, D) and labels (N,) int64.
        bank: features (M, D) and labels (M,), which are ordered by the cosine with each query.
        k: number of the nearest rows that precision@k counts, at most M.

    Returns:
        Precision@k and mean average precision, both in [0, 1].

    Examples:
        >>> bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([0, 1, 0])
        >>> precision, average = retrieval_scores((torch.tensor([[1.0, 0.1]]), torch.tensor([0])), bank, k=2)
        >>> precision, round(average, 3)  # right, wrong, right: (1/1 + 2/3) / 2
        (0.5, 0.833)
    """
    known = torch.isin(queries[1], bank[1])
    size = max(1, KNN_CHUNK // len(bank[1]))
    precisions, averages = [], []
    for part, labels in zip(queries[0][known].split(size), queries[1][known].split(size), strict=True):
        right = (bank[1][ranking(part, bank[0])] == labels[:, None]).double()
        place = torch.arange(1, right.shape[1] + 1, dtype=right.dtype, device=right.device)
        precisions.append(right[:, :k].mean(1))
        averages.append((right * right.cumsum(1) / place).sum(1) / right.sum(1))
    return torch.cat(precisions).mean().item(), torch.cat(averages).mean().item()


def retrieve(run: TrainedRun, top: int | None) -> None:
    """Prints precision@k and mean average precision of both encoders, and draws ``retrieval.png`` of the trained one."""
    images = run.images
    train, test = run.embeddings["trained"]
    k = min(top or TOP, len(train[1]))
    found = {encoder: retrieval_scores(*run.embeddings[encoder][::-1], k) for encoder in ENCODERS}
    say(f"{len(train[1])} training images in the order of their nearness to each of {len(test[1])} test images")
    say(f"  {'':<28}" + "".join(f"{encoder:>10}" for encoder in ENCODERS))
    for i, name in enumerate((f"precision@{k}", AVERAGE)):
        say(f"  {name:<28}" + "".join(f"{found[encoder][i]:>10.3f}" for encoder in ENCODERS))
    path = run.place("retrieval.png")
    title = f"{run.config.method}, {images.name}: precision@{k} {found['trained'][0]:.3f} ({found['untrained'][0]:.3f} untrained)"
    draw_retrieval(images, (images.train, train), (images.test, test), path, columns=min(k, MOST_SHOWN), title=title)
    say(f"  picture     {path}")
    keep(run.path.parent, retrieval_table(run, found, k), drawn={path.name: images.name})


def retrieval_table(run: TrainedRun, found: dict[str, tuple[float, float]], k: int) -> Table:
    """Precision@k and mean average precision of each of ``ENCODERS``, for ``scores.json``."""
    labels = (f"precision@{k}", AVERAGE)
    rows = tuple((name, tuple(found[each][i] for each in ENCODERS)) for i, name in enumerate(labels))
    heading = "training images in the order of their nearness to test images"
    return run.table("retrieval", heading, rows, columns=ENCODERS, names=("precision", "average_precision"))


def draw_neighbours(method: nn.Module, data: Any, config: TrainConfig, path: Path, *, device: Any, workers: int) -> bool:
    """Draws test images, and the nearest ones of ``MOST_BANK`` training images at most -> whether there were images to draw."""
    images, points = getattr(data, "stills", data), RECIPES[config.method].points
    wholes = [getattr(half, "whole", half) for half in (images.train, images.test)]
    if not all(isinstance(half, ImageSamples) and len(half) for half in wholes):
        return False
    halves = [limited(half, MOST_BANK) for half in wholes]
    found: list[Half] = []
    for half in halves:
        asked = replace(images, test=half)  # the half whose features a recipe gives
        part = points(method, replace(data, stills=asked) if hasattr(data, "stills") else asked, device=device, workers=workers)
        if part is None or not len(part[1]):
            return False
        found.append(part[:2])
    columns, title = min(TOP, len(found[0][1])), f"{config.method}, {images.name}"
    draw_retrieval(images, (halves[0], found[0]), (halves[1], found[1]), path, columns=columns, title=title)
    return True


def one_of_each(labels: Tensor, known: Tensor, most: int) -> Tensor:
    """The first index of each label (N,) that is among ``known``; of more than ``most``, that many evenly spaced labels."""
    classes = labels[torch.isin(labels, known)].unique()
    kept = torch.linspace(0, len(classes) - 1, min(len(classes), most), dtype=torch.float64).long()
    return torch.stack([(labels == label).nonzero()[0, 0] for label in classes[kept.to(classes.device)]])


def read_rows(half: Samples | Subset, rows: Tensor, size: int) -> Tensor:
    """The images (N, 3, size, size) that rows of the embeddings belong to, which have none of the files that cannot be read."""
    whole: Any = half.dataset if isinstance(half, Subset) else half
    places = torch.as_tensor(half.indices) if isinstance(half, Subset) else torch.arange(len(half))
    corrupt = getattr(whole, "corrupt", torch.zeros(len(whole), dtype=torch.bool))
    images = whole.__getitems__(places[~corrupt[places]][rows.cpu()].tolist())[0]
    return as_colours(centre(as_float(images), size)).float().clamp(0, 1)


def framed(images: Tensor, colours: list[tuple[float, float, float]]) -> Tensor:
    """images (N, 3, H, W) -> with a frame of its own colour around each."""
    width = max(2, images.shape[3] // 12)
    out = images.new_tensor(colours)[:, :, None, None].expand(*images.shape[:2], *(side + 2 * width for side in images.shape[2:]))
    out = out.clone()
    out[:, :, width:-width, width:-width] = images
    return out


def queries_of(train: Half, test: Half, labelled: bool) -> Tensor:
    """The test images that a picture shows: one of each class, or without classes ``UNLABELLED_ROWS`` of them, evenly spaced."""
    if labelled:
        return one_of_each(test[1], train[1], MOST_ROWS)
    count = len(test[1])
    return torch.linspace(0, count - 1, min(count, UNLABELLED_ROWS), dtype=torch.float64).long()


def draw_retrieval(
    images: Any,
    train: tuple[Samples | Subset, Half],
    test: tuple[Samples | Subset, Half],
    path: Path,
    *,
    columns: int,
    title: str,
) -> None:
    """A test image of each class at the left, and behind it its nearest training images, framed by whether their class is right.

    Args:
        images: the data, with its size and the names of its classes.
        train, test: the images of each half, and their features and labels.
        path: of the picture.
        columns: neighbours of each test image.
        title: the first line above the picture.
    """
    (bank, classes), (features, labels) = train[1], test[1]
    labelled = len(images.class_names) > 1
    asked = queries_of(train[1], test[1], labelled)
    nearest = ranking(features[asked], bank)[:, :columns]
    right = (classes[nearest] == labels[asked][:, None]).tolist()
    rows = []
    for query, found, its in zip(asked, nearest, right, strict=True):
        shown = [read_rows(half, index, images.image_size) for half, index in ((test[0], query[None]), (train[0], found))]
        frames = [FRAMES[each] if labelled else QUERY for each in its]
        rows.append(framed(torch.cat(shown), [QUERY, *frames]))
    names = [images.class_names[int(label)] for label in labels[asked]] if labelled else None
    draw_rows_of_neighbours(rows, right, names, path, title)


def draw_rows_of_neighbours(rows: list[Tensor], right: list[list[bool]], names: list[str] | None, path: Path, title: str) -> None:
    """Rows of framed images (1 + K, 3, H, W), with the name of the row's class, a cross on each wrong one, and how many are right.

    ``names``: None where there are no classes, and nothing is right or wrong.
    """
    from fastssl.train.pictures import STYLE, plt, save

    columns, side = len(rows[0]), rows[0].shape[3]
    gap = max(1, side // 12)
    picture, step = mosaic(rows, gap).numpy(), side + gap
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.62 * columns + 2.5, 0.62 * len(rows) + 0.8))
        axis.imshow(picture, interpolation="nearest")
        axis.axis("off")
        for i, (name, its) in enumerate(zip(names or (), right, strict=False)):
            height = i * step + side / 2
            axis.text(-gap, height, name, ha="right", va="center")
            axis.text(picture.shape[1] + gap, height, f"{sum(its)} of {len(its)}", ha="left", va="center", color="0.35")
            crosses = [((j + 1) * step + 0.84 * side, i * step + 0.16 * side) for j, found in enumerate(its) if not found]
            if crosses:
                axis.scatter(*zip(*crosses, strict=True), **CROSS)
        told = "a test image of a class, and the training images nearest to it: green right, orange with a cross wrong class"
        axis.set_title(f"{title}\n{told if names else 'a test image, and the training images nearest to it'}")
        save(figure, path)
