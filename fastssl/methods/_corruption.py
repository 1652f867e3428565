"""What is taken away from an image before it is painted again, and what grows an encoder's maps to the image's size."""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.functional import mask_ids

from ._image_checks import check_images, check_random
from ._maps import doublings


def upsampling(width: int, height: int, image_size: int, channels: int) -> nn.Sequential:
    """Maps (N, width, height, height) -> images (N, channels, image_size, image_size): each layer doubles the sides."""
    layers, width = doublings(width, (image_size // height).bit_length() - 1)
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
