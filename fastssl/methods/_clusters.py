"""Clusters of features for DeepCluster: whitened principal components, k-means, no cluster without a sample."""

import numpy as np
import torch
from torch import Tensor


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
