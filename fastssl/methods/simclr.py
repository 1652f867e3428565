"""SimCLR (Chen et al. 2020): two views of a picture, one encoder, one projection head, NT-Xent.

    z = head(backbone(cat(view0, view1)))        loss = nt_xent(z[:B], z[B:], temperature)

Both views go through encoder and head as one batch of 2B: batch normalisation then sees the same statistics for both
views, as in the paper's code, and the device gets one large call in place of two small ones.
"""

import torch
from torch import Tensor, nn

from fastssl.functional import nt_xent


def find_feature_dim(backbone: nn.Module) -> int:
    """Width of the backbone's features: that of one small image, or ``num_features`` where no usual size fits.

    The image goes first: timm's ``num_features`` is the width before the layer that some of its models add to the pool.
    """
    like = next(backbone.parameters(), torch.empty(0))
    training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        for side in (32, 224):
            try:
                with torch.no_grad():
                    features = backbone(torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype))
                return features.flatten(1).shape[1]
            except (RuntimeError, ValueError, AssertionError):
                continue
    finally:
        for module, mode in training.items():
            module.training = mode
    width = getattr(backbone, "num_features", None)
    if isinstance(width, int) and width > 0:
        return width
    raise ValueError("SimCLR: the backbone takes neither 32 x 32 nor 224 x 224 images and has no num_features; pass feature_dim")


class ProjectionHead(nn.Sequential):
    """Linear, batch normalisation, ReLU, linear: (N, in_dim) -> (N, out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )


class SimCLR(nn.Module):
    """SimCLR around any image encoder: ``SimCLR(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Args:
        backbone: images (B, 3, H, W) -> features (B, feature_dim), or (B, feature_dim, 1, 1).
        feature_dim: width of the features; by default that of a probe image, or ``backbone.num_features``.
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
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"SimCLR: temperature must be above 0, got {temperature}")
        self.feature_dim = find_feature_dim(backbone) if feature_dim is None else feature_dim
        self.temperature = temperature
        self.backbone = backbone
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def embed(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> features (B, feature_dim) of the backbone: what evaluation and later tasks use."""
        features = self.backbone(images).flatten(1)
        if features.shape[1] != self.feature_dim:
            raise ValueError(f"SimCLR: the backbone gives {features.shape[1]} features, expected feature_dim={self.feature_dim}")
        return features

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """Two views (B, 3, H, W) of the same B pictures, B >= 2 -> NT-Xent loss, scalar float32."""
        if view0.shape != view1.shape or view0.ndim != 4 or view0.shape[0] < 2:
            raise ValueError(
                "SimCLR: view0 and view1 must have the same shape (B, 3, H, W) with B of at least 2, "
                f"got {tuple(view0.shape)} and {tuple(view1.shape)}"
            )
        z0, z1 = self.projection_head(self.embed(torch.cat([view0, view1]))).chunk(2)
        return nt_xent(z0, z1, self.temperature)
