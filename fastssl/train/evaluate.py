"""Evaluation of frozen features: weighted kNN (Wu et al. 2018, section 3.4), a linear probe, and, without labels, their spread.

kNN: score_c = sum over the k nearest bank rows j of class c of exp((cos(feature, bank_j) - m) / t), m the largest of the k cosines.
m leaves the order of the classes as it is, and the nearest row a vote of 1: at a small t that is the only one, where without m no
vote would be left.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from fastssl.checks import accumulator_dtype
from fastssl.train import UsageError
from fastssl.train.augment import as_float
from fastssl.train.data import ImageData, batches
from fastssl.train.progress import watched
from fastssl.train.samples import Samples

KNN_CHUNK = 1 << 24  # similarities held at once: 64 MiB of float32
COLLAPSED = 0.15  # share of the untrained std: 0.27 was the least of a run that learned; collapse fell below in one or two epochs


@torch.no_grad()
def knn_predict(
    feature: Tensor,
    feature_bank: Tensor,
    feature_labels: Tensor,
    num_classes: int,
    knn_k: int = 20,
    knn_t: float = 0.1,
) -> Tensor:
    """Classes of each row, most likely first, by weighted k-nearest-neighbour vote.

    Args:
        feature: (N, D) floating; need not be normalised.
        feature_bank: (M, D) same dtype and device. lightly's function of this name takes it as (D, M).
        feature_labels: (M,) int64 in [0, num_classes).
        num_classes: C.
        knn_k: neighbours that vote; M where the bank is smaller.
        knn_t: temperature of the vote; towards 0 the nearest neighbour decides, towards infinity the number of neighbours.

    Returns:
        (N, C) int64; column 0 is the prediction. Where votes are equal, the sum of the cosines decides. Works in chunks of
        rows: the N x M similarities are never held at once.

    Raises:
        ValueError: shapes that do not fit, an empty bank, or a ``knn_k`` or ``knn_t`` that is not above 0.

    Examples:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> knn_predict(torch.tensor([[0.9, 0.1]]), bank, labels, num_classes=2, knn_k=1)[:, 0].tolist()
        [0]
    """
    shapes = f"{tuple(feature.shape)} and {tuple(feature_bank.shape)}"
    if feature.ndim != 2 or feature_bank.ndim != 2 or feature.shape[1] != feature_bank.shape[1]:
        raise ValueError(f"knn_predict: feature (N, D) and feature_bank (M, D) must share D, got {shapes}")
    if feature_labels.shape != feature_bank.shape[:1]:
        raise ValueError(f"knn_predict: feature_labels must have shape ({len(feature_bank)},), got {tuple(feature_labels.shape)}")
    if knn_k < 1 or not knn_t > 0 or len(feature_bank) == 0:
        raise ValueError(f"knn_predict: needs knn_k >= 1, knn_t > 0, M >= 1, got {knn_k}, {knn_t}, {len(feature_bank)}")
    bank = nn.functional.normalize(feature_bank, dim=1)
    k = min(knn_k, len(bank))
    rows = []
    for part in feature.split(max(1, KNN_CHUNK // len(bank))):
        cosine, nearest = (nn.functional.normalize(part, dim=1) @ bank.T).topk(k, dim=1)
        rows.append(_by_votes(cosine, feature_labels[nearest], num_classes, knn_t))
    return torch.cat(rows) if rows else torch.empty(0, num_classes, dtype=torch.int64, device=feature.device)


def _by_votes(cosine: Tensor, labels: Tensor, num_classes: int, t: float) -> Tensor:
    """Classes (N, C), most votes first, of the cosines (N, K) of neighbours, nearest first, and their labels (N, K)."""
    cosine = cosine.to(accumulator_dtype(cosine))
    least = 4 * torch.finfo(cosine.dtype).tiny  # of t: its inverse is still finite, and the nearest neighbour decides already
    none = torch.zeros(len(cosine), num_classes, dtype=cosine.dtype, device=cosine.device)
    votes = none.scatter_add(1, labels, ((cosine - cosine[:, :1]) / max(t, least)).exp())
    order = none.scatter_add(1, labels, cosine).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, votes.gather(1, order).argsort(dim=1, descending=True, stable=True))


def knn_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int, k: int = 20, t: float = 0.1) -> float:
    """Share of test rows that the train rows classify rightly; each pair is features (N, D), labels (N,)."""
    predicted = knn_predict(test[0], *train, num_classes, k, t)[:, 0]
    return (predicted == test[1]).float().mean().item()


def linear_probe_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of scikit-learn's logistic regression on standardised features.

    Args:
        train: features (N, D) and their labels (N,) int64, which the regression learns from.
        test: features (M, D) and their labels (M,), which are predicted.

    Returns:
        The share of the test rows whose prediction is right, in [0, 1].

    Examples:
        >>> features, labels = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe_accuracy((features, labels), (features, labels))
        1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train[0].cpu().numpy(), train[1].cpu().numpy())
    return float(probe.score(test[0].cpu().numpy(), test[1].cpu().numpy()))


def spread(features: Tensor) -> float:
    """Standard deviation of unit-length features (N, D), mean over dimensions, times sqrt(D); N at least 2.

    1: evenly on the sphere; 0: all features point the same way, the collapse of Chen and He 2021, figure 2.
    """
    return nn.functional.normalize(features, dim=1).std(0).mean().item() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, equation 1): exp of the entropy of the singular values of the features.

    Args:
        features: (N, D) floating.

    Returns:
        A number from 1, where all rows are multiples of one, to min(N, D), where all directions are as strong.

    Examples:
        >>> round(effective_rank(torch.eye(4)), 3), round(effective_rank(torch.ones(4, 4)), 3)
        (4.0, 1.0)
    """
    rows = features.to(features.device if features.is_cuda else "cpu", torch.float64)  # not every device has float64
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    singular = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum().exp().item()


def collapse_watch(features: Tensor) -> dict[str, float]:
    """``spread`` and ``effective_rank`` of features (N, D) by the names that the history has; empty for fewer than two rows."""
    return {"std": spread(features), "rank": effective_rank(features)} if len(features) > 1 else {}


def collapse_warning(history: list[dict]) -> str | None:
    """A line for a person where the last row's std is below ``COLLAPSED`` times that of the first, the untrained encoder's."""
    first, last = history[0].get("std"), history[-1].get("std")
    if first is None or last is None or last >= COLLAPSED * first:
        return None
    return (
        f"warning: the embeddings are collapsing: std {last:.3f}, and {first:.3f} before training; all images get nearly the "
        "same features, and there is little left to learn from"
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside this context ``module`` is in evaluation mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def embed(
    encoder: nn.Module, dataset: Samples | Subset, size: int, *, device: torch.device | str = "cpu", workers: int = 0
) -> tuple[Tensor, Tensor]:
    """features (N, D) float32 and labels (N,), on ``device``, of the whole images of a data set; the encoder's mode is kept.

    ``encoder`` is a method, whose ``embed`` is called, or any module from images to features. Images larger than ``size`` are
    reduced to their centre square of that side. Undecodable files are left out.
    """
    return embed_all(encoder, dataset, lambda images: centre(as_float(images), size), "images", device=device, workers=workers)


def knn_score(
    encoder: nn.Module,
    data: ImageData,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    knn_k: int = 20,
    knn_t: float = 0.1,
) -> float:
    """The accuracy of a weighted kNN vote on the test images of a data set, by an encoder's features of its training images.

    Args:
        encoder: a method of ``fastssl.methods``, whose ``embed`` is called, or any module from images (B, C, S, S) float32 in
            [0, 1] to features (B, ...), which are flattened. It is moved to ``device``; its mode is kept.
        data: what ``load_data`` returns.
        device: where the images are embedded.
        workers: processes that read the images; 0 reads in this process.
        knn_k: neighbours that vote.
        knn_t: temperature of the vote.

    Returns:
        The share of the test images whose class the vote names, in [0, 1].

    Raises:
        TypeError: an encoder that is no module, or data that are no ``ImageData``.
        ValueError: the data set has no classes or no test images of them, or ``knn_k`` or ``knn_t`` is not above 0.
        UsageError: a feature is NaN or infinite.

    Examples:
        >>> from fastssl.train.data import load_data
        >>> knn_score(nn.Identity(), load_data("digits", size=8)) > 0.95  # by the pixels themselves
        True
    """
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"knn_score: encoder must be a module, got {type(encoder).__name__}")
    if not isinstance(data, ImageData):
        raise TypeError(f"knn_score: data must be an ImageData, as load_data returns it, got {type(data).__name__}")
    if not data.labelled:
        raise ValueError(f"knn_score: data must have two classes and test images of them, got {data.summary()}")
    train, test = (
        embed(encoder.to(device), half, data.image_size, device=device, workers=workers) for half in (data.train, data.test)
    )
    return knn_accuracy(train, test, len(data.class_names), knn_k, knn_t)


@torch.no_grad()
def embed_all(
    encoder: nn.Module,
    dataset: Samples | Subset,
    prepare: Callable[[Tensor], Tensor],
    unit: str,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """``embed`` of any samples, ``unit`` in the plural; ``prepare`` makes what the encoder takes of a batch of them."""
    encode, features, labels = getattr(encoder, "embed", encoder), [], []
    loader = batches(dataset, 512, workers=workers)
    with evaluating(encoder):
        for inputs, classes, *_ in watched(loader, len(loader), f"embedding {len(dataset)} {unit}"):
            if len(inputs):
                features.append(encode(prepare(inputs.to(device))).flatten(1).float())
                labels.append(classes.to(device))
    if not features:
        return torch.empty(0, 0, device=device), torch.empty(0, dtype=torch.int64, device=device)
    rows = torch.cat(features)
    if bad := int((~rows.isfinite().all(1)).sum()):
        which = f"the encoder's features of {bad} of {len(rows)} {unit} are NaN or infinite"
        raise UsageError(f"{which}; train with a smaller --lr or --weight-decay")
    return rows, torch.cat(labels)


def centre(images: Tensor, size: int) -> Tensor:
    """The centre of images.

    Args:
        images: (B, C, H, W).
        size: side of the square in pixels, at most H and W.

    Returns:
        (B, C, size, size), a view of ``images``.

    Examples:
        >>> centre(torch.arange(16).view(1, 1, 4, 4), 2).flatten().tolist()
        [5, 6, 9, 10]
    """
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]
