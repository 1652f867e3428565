"""Clusters of features for DeepCluster: whitened principal components, k-means, no cluster without a sample."""

import numpy as np
import torch
from torch import Tensor

from fastssl.checks import check_dense, check_float_dtype


def whitened(features: Tensor, components: int) -> Tensor:
    """Unit rows (N, C) float32 on the CPU of features (N, D): their first C principal components, each of variance 1.

    C is ``components``, or fewer where the features vary in fewer directions.
    """
    rows = features.detach().to("cpu", torch.float64)
    rows = rows - rows.mean(0)
    variances, directions = torch.linalg.eigh(rows.T @ rows / max(1, len(rows) - 1))  # ascending
    kept = min(components, max(1, int((variances > 1e-10 * variances[-1]).sum())))
    scale = variances[-kept:].clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    return torch.nn.functional.normalize(rows @ (directions[:, -kept:] * scale)).float()


def k_means(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster (N,) int64 of each of rows (N, C), by scikit-learn in one thread: more threads add in an order that varies."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        found = KMeans(clusters, n_init=1, max_iter=50, random_state=seed).fit(rows.numpy())
    return torch.from_numpy(found.labels_.astype(np.int64))


def fill_empty(labels: Tensor, rows: Tensor, clusters: int, seed: int) -> Tensor:
    """Gives each cluster without a sample half of the largest one, which a random direction splits at its median."""
    labels, generator = labels.clone(), torch.Generator().manual_seed(seed)
    counts = labels.bincount(minlength=clusters)
    for empty in (counts == 0).nonzero().flatten().tolist():
        largest = int(counts.argmax())
        members = (labels == largest).nonzero().flatten()
        direction = torch.randn(rows.shape[1], generator=generator)
        moved = members[(rows[members] @ direction).argsort(stable=True)[: len(members) // 2]]
        labels[moved] = empty
        counts[largest] -= len(moved)
        counts[empty] = len(moved)
    return labels


def clustered(features: Tensor, clusters: int, components: int, seed: int) -> Tensor:
    """features (N, D) -> the cluster (N,) int64 of each, none of them empty."""
    rows = whitened(features, components)
    return fill_empty(k_means(rows, clusters, seed), rows, clusters, seed)


def agreement(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information of two labellings (N,) of the same samples, in [0, 1]: 1 where they are the same clusters.

    It is divided by the arithmetic mean of both entropies, as by scikit-learn.
    """
    joint = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.float64)
    joint.index_put_((first, second), torch.ones(len(first), dtype=torch.float64), accumulate=True)
    joint /= len(first)
    entropies = [torch.special.entr(part).sum().item() for part in (joint.sum(1), joint.sum(0), joint)]
    mean = (entropies[0] + entropies[1]) / 2
    return 1.0 if mean == 0 else max(0.0, entropies[0] + entropies[1] - entropies[2]) / mean


def checked_round(features: Tensor, index: Tensor | None, count: int, num_clusters: int) -> Tensor:
    """Which of ``count`` samples the rows of ``features`` are, on the CPU; refused where the arguments of a round do not fit."""
    check_dense("DeepCluster.start_round", "features", features, "a tensor (M, D)")
    check_float_dtype("DeepCluster.start_round", "features", features)
    index = torch.arange(count) if index is None else checked_places(index, count)
    if features.ndim != 2 or len(features) != len(index) or len(features) < num_clusters:
        wanted = f"({len(index)}, D) with at least num_clusters {num_clusters} rows"
        raise ValueError(f"DeepCluster.start_round: features must have shape {wanted}, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("DeepCluster.start_round: features must be finite, got NaN or infinite ones")
    return index


def checked_places(index: Tensor, count: int) -> Tensor:
    """``index`` of ``start_round`` on the CPU, after its checks."""
    op = "DeepCluster.start_round"
    check_dense(op, "index", index, "an int64 tensor (M,)")
    if index.dtype != torch.int64:
        raise TypeError(f"{op}: index must be int64, got {index.dtype}")
    index = index.cpu()
    if index.ndim != 1 or not len(index):
        raise ValueError(f"{op}: index must have shape (M,), M at least 1, got {tuple(index.shape)}")
    low, high = (int(end) for end in index.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{op}: index must be in [0, {count}), got {low if low < 0 else high}")
    if int(index.bincount().max()) > 1:
        raise ValueError(f"{op}: index must hold each sample once, got {int(index.bincount().argmax())} more often")
    return index


def balanced_order(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """labels (N,) on the CPU -> (N,) places in random order, those of each cluster equally often."""
    clusters = labels[labels >= 0].unique().tolist()  # all of them, unless ``take_round`` was given fewer
    if not clusters:
        raise ValueError("DeepCluster.sample_order: no sample is in a cluster; call start_round with the features of all samples")
    share = -(-len(labels) // len(clusters))
    drawn = []
    for cluster in clusters:
        members = (labels == cluster).nonzero().flatten()
        rounds = [members[torch.randperm(len(members), generator=generator)] for _ in range(-(-share // len(members)))]
        drawn.append(torch.cat(rounds)[:share])
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)[: len(labels)]]
