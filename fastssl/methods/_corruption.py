"""What is taken away from an image before it is painted again, and what grows an encoder's maps to the image's size."""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.functional import mask_ids

from ._image_checks import check_images, check_random
from ._layers import refuse_lazy
from ._probe import undisturbed


def map_shape(backbone: Any, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(D, h, w) of ``backbone.forward_features`` for images of ``shape`` (C, H, W)."""
    name = "Inpainting: backbone must be a convolutional encoder with forward_features -> (N, D, h, w)"
    kind = type(backbone).__name__
    if not hasattr(backbone, "forward_features"):
        raise ValueError(f"{name}, got {kind} without forward_features")
    refuse_lazy(backbone, "Inpainting")
    like = next(backbone.parameters(), torch.empty(0))
    images = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    with undisturbed(backbone):
        try:
            maps = backbone.forward_features(images)
        except Exception as error:
            raise ValueError(f"{name}, got {kind}, which fails on images (1, {', '.join(map(str, shape))}): {error}") from error
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise ValueError(f"{name}, got {kind}, whose features have shape {tuple(getattr(maps, 'shape', ()))}")
    scale = shape[1] // maps.shape[2]
    if scale & (scale - 1) or (maps.shape[2] * scale, maps.shape[3] * scale) != shape[1:]:
        raise ValueError(f"{name}, h and w those of the images {shape[1:]} over a power of 2, got {tuple(maps.shape[2:])}")
    return maps.shape[1], maps.shape[2], maps.shape[3]


def upsampling(width: int, height: int, image_size: int, channels: int) -> nn.Sequential:
    """Maps (N, width, height, height) -> images (N, channels, image_size, image_size): each layer doubles the sides."""
    layers: list[nn.Module] = []
    for _ in range((image_size // height).bit_length() - 1):
        before, width = width, max(32, width // 2)
        layers += [nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, 1, 1))


def blanked(images: Tensor, mask: Tensor, size: int) -> Tensor:
    """images (N, C, S, S), mask (N, cells) of squares of ``size`` pixels, 1 = removed -> images with these in the mean colour of
    what is left of the image."""
    side = images.shape[2] // size
    removed = mask.view(len(mask), 1, side, side).repeat_interleave(size, 2).repeat_interleave(size, 3)
    seen = 1 - removed.to(images.dtype)
    mean = (images * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    return torch.where(removed > 0, mean, images)


class CorruptedImages(nn.Module):
    """A method with an encoder to maps and a decoder to images, which takes squares or adds noise."""

    backbone: Any  # with forward_features, which no type of torch has
    decoder: nn.Sequential
    corruption: str
    mask_ratio: float
    sigma: float
    cells: int
    patch_size: tuple[int, int]
    shape: tuple[int, int, int]

    def corrupt(self, images: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """images -> corrupted images (N, C, H, W), mask (N, cells) float32, 1 = removed (all of them where it is noise)."""
        n = len(images)
        check_random("Inpainting", noise, generator, images.shape if self.corruption == "noise" else (n, self.cells), images)
        if self.corruption == "noise":
            if noise is None:
                noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
            return images + self.sigma * noise, torch.ones(n, self.cells, device=images.device)
        mask = mask_ids((n, self.cells), self.mask_ratio, noise=noise, generator=generator, device=images.device).mask
        return blanked(images, mask, self.patch_size[0]), mask

    def paint(self, corrupted: Tensor) -> Tensor:
        """Corrupted images (N, C, H, W) -> whole ones."""
        return self.decoder(self.backbone.forward_features(corrupted))

    def check(self, images: Tensor) -> None:
        """Refuses images that are not of the size, dtype and device of the method."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        check_images("Inpainting", images, self.shape, last.weight)
