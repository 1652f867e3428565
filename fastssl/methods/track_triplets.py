"""Triplets of tracked patches (Wang & Gupta 2015): what one patch becomes over time is alike, patches of other tracks are not.

    z = head(backbone(patch)),  d(x, y) = 1 - cos(x, y)      loss = mean of max(0, d(z_0, z_1) - d(z_0, z_n) + margin)

(z_0, z_1) are the first and the last patch of a track, in both roles. z_n is a patch of another track of the batch: every one of
them ("all"), or the one that is nearest, the mined hard negative ("hard").
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice
from fastssl.functional import triplet_batch

from ._checks import check_positive, check_widths, given
from ._common import PlainMethod, ProjectionHead


class TrackTriplets(PlainMethod):
    """Ranks a track's patches above others: ``TrackTriplets(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Wang & Gupta 2015, https://arxiv.org/abs/1505.00687, equations 1 to 3. The loss is ``fastssl.functional.triplet_batch``.

    Args:
        backbone: the encoder of patches, any module from images (N, ...) to features (N, feature_dim). It may also return maps, a
            mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        margin: by how much a track's own patch must be nearer than others; the paper has 0.5.
        mining: "hard", the nearest patch of another track, or "all", each of them. The paper begins with random patches and takes
            the four hardest from the tenth epoch on.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of the embeddings that the loss compares.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> method = TrackTriplets(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8)), projection_dim=4)
        >>> method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        margin: float = 0.5,
        mining: str = "hard",
        hidden_dim: int | None = None,
        projection_dim: int = 128,
    ):
        check_widths("TrackTriplets", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        check_positive("TrackTriplets", margin=margin)
        check_choice("TrackTriplets", "mining", mining, ("hard", "all"))
        super().__init__(backbone, feature_dim)
        self.how: dict[str, Any] = {"margin": margin, "mining": mining, "distance": "cosine", "reduction": "mean"}
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def project(self, patches: Tensor) -> Tensor:
        """Patches (N, ...) -> the embeddings (N, projection_dim) that the loss compares."""
        return self.projection_head(self.embed(patches))

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of the first and last patches of tracks.

        Args:
            view0, view1: (B, ...) float, two patches of each of B tracks; B is at least 2.

        Returns:
            Scalar float32 (float64 for a float64 model), averaged over the triplets.

        Raises:
            TypeError: patches of different dtypes or devices.
            ValueError: patches of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        track = torch.arange(len(view0), device=view0.device).repeat(2)
        return triplet_batch(self.project(torch.cat([view0, view1])), track, **self.how)
