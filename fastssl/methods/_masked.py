"""What the methods share that hide patches of images from a vision transformer."""

import torch
from torch import Tensor, nn

from fastssl.checks import check_number
from fastssl.functional import patchify, unpatchify

from ._checks import check_positive
from ._image_checks import check_images
from ._layers import check_encoder
from ._timm import TimmLike, check_backbone, image_shape


def pooled_features(backbone: TimmLike, images: Tensor) -> Tensor:
    """images (N, C, H, W) -> features (N, D), as the backbone pools them, before its classifier."""
    if hasattr(backbone, "forward_head"):
        return backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    return backbone(images)


def pasted(images: Tensor, pred: Tensor, mask: Tensor, patch: tuple[int, int], layout: str) -> tuple[Tensor, Tensor]:
    """images (N, C, H, W), pred (N, L, P), mask (N, L) -> images with removed patches 0, and with the predicted ones there."""
    removed, target = mask[:, :, None] > 0, patchify(images, patch, layout=layout)
    parts = (target.masked_fill(removed, 0.0), torch.where(removed, pred.to(target.dtype), target))
    masked, filled = (unpatchify(part, patch, layout=layout, image_size=(images.shape[2], images.shape[3])) for part in parts)
    return masked, filled


class MaskedImages(nn.Module):
    """What MAE and SimMIM share: a backbone that is known to work, images on the scale that it sees, features."""

    backbone: TimmLike
    patch_size: tuple[int, int]
    grid: tuple[int, int]

    def __init__(self, backbone: TimmLike, pixel_mean: float, pixel_std: float):
        super().__init__()
        self.name = type(self).__name__
        check_encoder(backbone, self.name)
        check_backbone(self.name, backbone)
        check_number(self.name, "pixel_mean", pixel_mean)
        check_positive(self.name, pixel_std=pixel_std)
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.patch_size, self.grid = backbone.patch_embed.proj.kernel_size, tuple(backbone.patch_embed.grid_size)
        self.backbone = backbone

    def scaled(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) of the backbone's size, less ``pixel_mean``, over ``pixel_std``."""
        check_images(self.name, images, image_shape(self.backbone), self.backbone.patch_embed.proj.weight)
        return images if (self.pixel_mean, self.pixel_std) == (0.0, 1.0) else (images - self.pixel_mean) / self.pixel_std

    def embed(self, images: Tensor) -> Tensor:
        """Features of whole images, of which nothing is removed.

        Args:
            images: (N, C, H, W) float, of the backbone's size.

        Returns:
            (N, D), as the backbone pools its tokens: the class token, or their mean.
        """
        return pooled_features(self.backbone, self.scaled(images))
