"""DeepCluster (Caron et al. 2018): the encoder learns to name the cluster of each sample, and the clusters come from its features.

    each round:   clusters = k-means(whitened principal components of backbone(samples)); the classifier starts anew
    each step:    loss = cross-entropy(classifier(backbone(view)), cluster of the sample)

Steps draw the clusters uniformly, so that a large one does not become the answer to all samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import readable

from ._checks import check_batch, check_widths, samples_of
from ._clusters import agreement, balanced_order, checked_round, clustered
from ._common import PlainMethod


class DeepCluster(PlainMethod):
    """DeepCluster around any encoder: ``DeepCluster(backbone, num_samples)(images, index)`` is the loss to call ``backward`` on.

    Caron et al. 2018, https://arxiv.org/abs/1807.05520, equation 2 for the steps and 1 for the rounds.

    A training loop starts each round, usually an epoch, with ``start_round(features of all samples)``, takes the samples in the
    order of ``sample_order``, and forgets what its optimizer has kept of ``method.classifier``, which the round has replaced.

    ``labels``, int64 (num_samples,), has the cluster of each sample, -1 for those that are in none. ``round``, int64 (), counts the
    rounds. ``nmi``, float32 (), is the normalised mutual information of the clusters with those of the round before, 0 in the first
    one. All three are in the state dict.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        num_samples: number of training samples; ``index`` counts them.
        num_clusters: number K of clusters, at most ``num_samples``. The paper has 10 times the number of classes.
        feature_dim: width of the features. By default a probe finds it.
        components: number of principal components of the features that are clustered, at most.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method, images = DeepCluster(backbone, 20, num_clusters=4), torch.rand(20, 3, 2, 2)
        >>> method.start_round(method.embed(images), seed=0)
        >>> index = method.sample_order(torch.Generator().manual_seed(0))[:5]
        >>> method(images[index], index).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        *,
        num_clusters: int = 100,
        feature_dim: int | None = None,
        components: int = 256,
    ):
        check_widths("DeepCluster", num_samples=num_samples, num_clusters=num_clusters, components=components)
        if num_clusters > num_samples:
            raise ValueError(f"DeepCluster: num_clusters must be at most num_samples {num_samples}, got {num_clusters}")
        super().__init__(backbone, feature_dim)
        self.num_clusters, self.components = num_clusters, components
        self.classifier = nn.Linear(self.feature_dim, num_clusters)
        self.labels: Tensor
        self.round: Tensor
        self.nmi: Tensor
        self.register_buffer("labels", torch.full((num_samples,), -1, dtype=torch.int64))
        self.register_buffer("round", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nmi", torch.zeros((), dtype=torch.float32))

    def forward(self, images: Tensor, index: Tensor) -> Tensor:
        """The loss of a view of some samples.

        Args:
            images: (B, ...) float, one view of each of B samples.
            index: (B,) integers in [0, num_samples), which samples the images are of.

        Returns:
            Scalar float32, the mean over those of the samples that are in a cluster; 0 where none is.

        Raises:
            TypeError: an ``index`` that is no integers.
            ValueError: an ``index`` of another length or, where the host can see it, beyond the samples; no round has been started.
        """
        check_batch("DeepCluster", 2, images=images)
        index = samples_of("DeepCluster", index, images, len(self.labels))
        if readable(self.round) and self.round == 0:
            raise ValueError("DeepCluster: no round has been started; call start_round with the features of all samples")
        logits = self.classifier(self.embed(images))
        labels = self.labels[index]
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp_min(1)

    @torch.no_grad()
    def start_round(self, features: Tensor, index: Tensor | None = None, *, seed: int = 0) -> None:
        """Clusters the samples anew, by scikit-learn on the CPU, and makes a new classifier.

        Args:
            features: (M, D) float, the backbone's features of samples, M at least ``num_clusters``.
            index: (M,) int64, which samples they are, each once; the others are in no cluster. By default all in their order.
            seed: of k-means and of the classifier's weights. Processes that train together need the same features and seed, or one
                of them starts the round and sends ``labels`` and ``nmi`` to the others.

        Raises:
            TypeError: ``index`` of another dtype.
            ValueError: shapes that do not fit, an index beyond the samples or twice, features that are not finite, or too few.
        """
        index = checked_round(features, index, len(self.labels), self.num_clusters)
        found = clustered(features, self.num_clusters, self.components, seed)
        labels = torch.full((len(self.labels),), -1, dtype=torch.int64).index_put_((index,), found)
        before = self.labels.cpu()
        both = (labels >= 0) & (before >= 0)
        self.nmi.fill_(agreement(before[both], labels[both]) if both.any() else 0.0)
        self.take_round(labels, seed)

    @torch.no_grad()
    def take_round(self, labels: Tensor, seed: int) -> None:
        """Starts a round with clusters (num_samples,) that are known, -1 for samples in none, and a new classifier."""
        self.labels.copy_(labels)
        weight = torch.randn(self.classifier.weight.shape, generator=torch.Generator().manual_seed(seed))
        self.classifier.weight.copy_(0.01 * weight)
        nn.init.zeros_(self.classifier.bias)
        self.round.add_(1)

    def sample_order(self, generator: torch.Generator | None = None) -> Tensor:
        """As many samples as there are, in random order, each cluster equally often; those of small ones come several times.

        Args:
            generator: a generator of the CPU; by default torch's own.

        Returns:
            (num_samples,) int64 on the CPU, places of samples.

        Raises:
            ValueError: no sample is in a cluster, as before the first round.
        """
        return balanced_order(self.labels.cpu(), generator)
