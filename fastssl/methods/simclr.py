"""SimCLR (Chen et al. 2020): two views of a picture, one encoder, one projection head, NT-Xent.

    z = head(backbone(cat(view0, view1)))        loss = nt_xent(z[:B], z[B:], temperature)

Both views go through encoder and head as one batch of 2B: batch normalisation then sees the same statistics for both
views, as in the paper's code, and the device gets one large call in place of two small ones.
"""

import torch
from torch import Tensor, nn

from fastssl.functional import nt_xent

from ._common import ImageMethod, ProjectionHead, check_widths, given
from ._encoder import find_feature_dim

__all__ = ["ProjectionHead", "SimCLR", "find_feature_dim"]


class SimCLR(ImageMethod):
    """SimCLR around any encoder: ``SimCLR(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Args:
        backbone: inputs (B, ...) -> features (B, feature_dim), or maps, a mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features; by default found by a probe.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: of NT-Xent, above 0.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.5,
    ):
        check_widths("SimCLR", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        super().__init__(backbone, feature_dim, temperature)
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """Two views (B, ...) of the same B samples, B >= 2 -> NT-Xent loss, scalar float32."""
        self.check_views(view0, view1)
        z0, z1 = self.projection_head(self.embed(torch.cat([view0, view1]))).chunk(2)
        return nt_xent(z0, z1, self.temperature)
