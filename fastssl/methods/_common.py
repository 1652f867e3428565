"""What the methods share: the width of an encoder's features, heads, checks of their input, random rows."""

import torch
from torch import Tensor, nn

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def find_feature_dim(backbone: nn.Module, name: str = "SimCLR") -> int:
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
    raise ValueError(f"{name}: the backbone takes neither 32 x 32 nor 224 x 224 images and has no num_features; pass feature_dim")


class ProjectionHead(nn.Sequential):
    """Linear, batch normalisation, ReLU, linear: (N, in_dim) -> (N, out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )


class ImageMethod(nn.Module):
    """An image encoder with a temperature: images (B, 3, H, W) -> features (B, feature_dim), or (B, feature_dim, 1, 1)."""

    def __init__(self, backbone: nn.Module, feature_dim: int | None, temperature: float):
        super().__init__()
        name = type(self).__name__
        if not temperature > 0:
            raise ValueError(f"{name}: temperature must be above 0, got {temperature}")
        self.feature_dim = find_feature_dim(backbone, name) if feature_dim is None else feature_dim
        self.temperature = temperature
        self.backbone = backbone

    def embed(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> features (B, feature_dim) of the backbone: what evaluation and later tasks use."""
        return features_of(self.backbone, images, self.feature_dim, type(self).__name__)

    def check_views(self, view0: Tensor, view1: Tensor) -> None:
        name = type(self).__name__
        check_tensors(name, view0=view0, view1=view1)
        if view0.shape != view1.shape or view0.ndim != 4 or view0.shape[0] < 2:
            raise ValueError(
                f"{name}: view0 and view1 must have the same shape (B, 3, H, W) with B of at least 2, "
                f"got {tuple(view0.shape)} and {tuple(view1.shape)}"
            )


def features_of(backbone: nn.Module, images: Tensor, feature_dim: int, name: str) -> Tensor:
    """images (N, ...) -> features (N, feature_dim), refused where the backbone gives another width."""
    features = backbone(images).flatten(1)
    if features.shape[1] != feature_dim:
        raise ValueError(f"{name}: the backbone gives {features.shape[1]} features, expected feature_dim={feature_dim}")
    return features


def check_tensors(name: str, **tensors: Tensor) -> None:
    for argument, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: {argument} must be a tensor, got {type(value).__name__}")


def check_integers(name: str, argument: str, value: Tensor, rows: int) -> None:
    """``value`` (rows,) of an integer type."""
    check_tensors(name, **{argument: value})
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name}: {argument} must be integers, got {value.dtype}")
    if tuple(value.shape) != (rows,):
        raise ValueError(f"{name}: {argument} must have shape ({rows},), one for each image, got {tuple(value.shape)}")


def random_unit_rows(rows: int, width: int) -> Tensor:
    """(rows, width) float32, directions uniform on the sphere: what a bank or queue holds before its first embeddings."""
    return nn.functional.normalize(torch.randn(rows, width), dim=1)
