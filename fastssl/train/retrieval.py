"""``fastssl eval RUN --retrieve``: the training images nearest to test images, as a picture and in numbers.

The training images are ordered by the cosine of their features with those of a query, the nearest first. r_i is 1 where image i of
that order has the query's class and 0 elsewhere, R the sum of all r_i. Precision@k = (r_1 + ... + r_k) / k, and average precision =
1/R sum_i r_i (r_1 + ... + r_i) / i. Both are averaged over the queries.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.train.augment import as_float
from fastssl.train.downstream import ENCODERS, Half, TrainedRun
from fastssl.train.evaluate import KNN_CHUNK, centre
from fastssl.train.progress import say
from fastssl.train.reconstruct import as_colours, mosaic
from fastssl.train.samples import ImageSamples

TOP, MOST_ROWS, MOST_SHOWN = 10, 20, 20
FRAMES = {True: (0.0, 0.62, 0.45), False: (0.84, 0.37, 0.0)}  # of right and of wrong classes, for all eyes
QUERY = (0.35, 0.35, 0.35)


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
    for i, name in enumerate((f"precision@{k}", "mean average precision")):
        say(f"  {name:<28}" + "".join(f"{found[encoder][i]:>10.3f}" for encoder in ENCODERS))
    path = run.path.parent / "retrieval.png"
    title = f"{run.config.method}, {images.name}: precision@{k} {found['trained'][0]:.3f} ({found['untrained'][0]:.3f} untrained)"
    draw_retrieval(run, path, columns=min(k, MOST_SHOWN), title=title)
    say(f"  picture     {path}")


def one_of_each(labels: Tensor, known: Tensor, most: int) -> Tensor:
    """The first index of each label (N,) that is among ``known``; of more than ``most``, that many evenly spaced labels."""
    classes = labels[torch.isin(labels, known)].unique()
    kept = torch.linspace(0, len(classes) - 1, min(len(classes), most), dtype=torch.float64).long()
    return torch.stack([(labels == label).nonzero()[0, 0] for label in classes[kept.to(classes.device)]])


def read_rows(half: ImageSamples, rows: Tensor, size: int) -> Tensor:
    """The images (N, 3, size, size) that rows of the embeddings belong to, which have none of the files that cannot be read."""
    corrupt = getattr(half, "corrupt", torch.zeros(len(half), dtype=torch.bool))
    images = half.__getitems__((~corrupt).nonzero().flatten()[rows.cpu()].tolist())[0]
    return as_colours(centre(as_float(images), size)).float().clamp(0, 1)


def framed(images: Tensor, colours: list[tuple[float, float, float]]) -> Tensor:
    """images (N, 3, H, W) -> with a frame of its own colour around each."""
    width = max(2, images.shape[3] // 12)
    out = images.new_tensor(colours)[:, :, None, None].expand(*images.shape[:2], *(side + 2 * width for side in images.shape[2:]))
    out = out.clone()
    out[:, :, width:-width, width:-width] = images
    return out


def draw_retrieval(run: TrainedRun, path: Path, *, columns: int, title: str) -> None:
    """A test image of each class at the left, and behind it its nearest training images, framed by whether their class is right."""
    from fastssl.train.pictures import STYLE, plt, save

    (bank, classes), (queries, labels) = run.embeddings["trained"]
    asked = one_of_each(labels, classes, MOST_ROWS)
    nearest = ranking(queries[asked], bank)[:, :columns]
    right = classes[nearest] == labels[asked][:, None]
    size, halves = run.images.image_size, (run.images.test, run.images.train)
    rows = []
    for query, found, its in zip(asked, nearest, right.tolist(), strict=True):
        shown = [read_rows(half, index, size) for half, index in zip(halves, (query[None], found), strict=True)]
        rows.append(framed(torch.cat(shown), [QUERY, *(FRAMES[each] for each in its)]))
    gap = max(1, size // 10)
    picture = mosaic(rows, gap).numpy()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.62 * (columns + 1) + 2.5, 0.62 * len(rows) + 0.8))
        axis.imshow(picture, interpolation="nearest")
        axis.axis("off")
        high = picture.shape[0] / len(rows)
        for i, (query, its) in enumerate(zip(asked, right.tolist(), strict=True)):
            name = run.images.class_names[int(labels[query])]
            axis.text(-gap, (i + 0.5) * high, name, ha="right", va="center")
            axis.text(picture.shape[1] + gap, (i + 0.5) * high, f"{sum(its)} of {len(its)}", ha="left", va="center", color="0.35")
        axis.set_title(f"{title}\na test image of a class, and the training images nearest to it: green right, orange wrong class")
        save(figure, path)
