"""Autoencoders of corrupted images: context encoder (Pathak et al. 2016) without its adversary, denoising (Vincent et al. 2008).

    out = decoder(encoder(corrupted))
    blocks:  corrupted = image, random cells of a grid filled by the mean of the rest      loss = mean over these of (out - image)^2
    noise:   corrupted = image + sigma n, n normal                                         loss = mean over all of (out - image)^2

The encoder gives maps (N, D, h, w); the decoder doubles them up to the images' size. No connection goes around the maps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_choice
from fastssl.functional import mask_ids, masked_patch_loss, patchify

from ._ask import ask
from ._checks import check_batch, check_positive, check_widths
from ._encoder import pooled
from ._image_checks import check_images, check_random, check_ratio
from ._layers import check_encoder, refuse_lazy
from ._masked import pasted
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


class Inpainting(nn.Module):
    """Fills removed blocks, or removes noise: ``Inpainting(backbone)(images)`` is the loss to call ``backward`` on.

    Pathak et al. 2016, https://arxiv.org/abs/1604.07379, equation 1, without the adversary; Vincent et al. 2008 for noise.

    Args:
        backbone: a module whose ``forward_features`` goes from images (N, C, H, W) to maps (N, D, h, w), H / h = W / w a power of
            2, such as timm's convolutional models. Called itself, it gives the features (N, D') of ``embed``.
        image_size: side H = W of the images.
        corruption: "blocks" or "noise".
        mask_ratio: share of the cells that "blocks" removes.
        mask_size: side in pixels of a cell of "blocks". Noise has one cell, the image, where it does not divide ``image_size``.
        sigma: standard deviation of the noise of "noise".
        channels: number C of channels.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: a backbone without such maps, cells that do not fit, a ratio that removes no cell or all.

    Examples:
        >>> class Encoder(torch.nn.Conv2d):
        ...     def forward_features(self, images):
        ...         return torch.nn.Conv2d.forward(self, images)
        ...     def forward(self, images):
        ...         return self.forward_features(images).mean((2, 3))
        >>> method = Inpainting(Encoder(3, 8, 2, 2), image_size=8, mask_size=2)
        >>> images = torch.rand(5, 3, 8, 8)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int = 32,
        *,
        corruption: str = "blocks",
        mask_ratio: float = 0.25,
        mask_size: int = 8,
        sigma: float = 0.2,
        channels: int = 3,
    ):
        super().__init__()
        check_encoder(backbone, "Inpainting")
        check_choice("Inpainting", "corruption", corruption, ("blocks", "noise"))
        check_widths("Inpainting", image_size=image_size, mask_size=mask_size, channels=channels)
        if image_size % mask_size:
            if corruption == "blocks":
                raise ValueError(f"Inpainting: mask_size must divide image_size {image_size}, got {mask_size}")
            mask_size = image_size
        check_positive("Inpainting", sigma=sigma)
        self.cells = (image_size // mask_size) ** 2
        if corruption == "blocks":
            check_ratio("Inpainting", mask_ratio, self.cells)
        self.shape = (channels, image_size, image_size)
        self.corruption, self.mask_ratio, self.sigma = corruption, mask_ratio, sigma
        self.patch_size = (mask_size, mask_size)
        self.backbone: Any = backbone  # with forward_features, which no type of torch has
        before, height, _ = map_shape(backbone, self.shape)
        layers: list[nn.Module] = []
        for _ in range((image_size // height).bit_length() - 1):
            width = max(32, before // 2)
            layers += [nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        self.decoder = nn.Sequential(*layers, nn.Conv2d(before, channels, 3, 1, 1))

    def corrupt(self, images: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """images -> corrupted images (N, C, H, W), mask (N, cells) float32, 1 = removed (all of them where it is noise)."""
        n = len(images)
        check_random("Inpainting", noise, generator, images.shape if self.corruption == "noise" else (n, self.cells), images)
        if self.corruption == "noise":
            if noise is None:
                noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
            return images + self.sigma * noise, torch.ones(n, self.cells, device=images.device)
        mask = mask_ids((n, self.cells), self.mask_ratio, noise=noise, generator=generator, device=images.device).mask
        side = round(self.cells**0.5)
        removed = mask.view(n, 1, side, side).repeat_interleave(self.patch_size[0], 2).repeat_interleave(self.patch_size[1], 3)
        seen = 1 - removed.to(images.dtype)
        mean = (images * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
        return torch.where(removed > 0, mean, images), mask

    def paint(self, corrupted: Tensor) -> Tensor:
        """Corrupted images (N, C, H, W) -> whole ones."""
        return self.decoder(self.backbone.forward_features(corrupted))

    def forward(self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of images.

        Args:
            images: (N, C, H, W) float, of the size and channels that the method was made for.
            noise: of "blocks" (N, cells), of which those with the smallest values stay, by default from ``torch.rand``; of "noise"
                (N, C, H, W), by default from ``torch.randn``.
            generator: what these draw from, instead of ``noise``.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over the removed pixels or over all noisy ones.

        Raises:
            TypeError: images or noise that are not floating, or images of another dtype than the model's outside of autocast.
            ValueError: images or noise of another shape or device, or both ``noise`` and ``generator``.
        """
        self.check(images)
        corrupted, mask = self.corrupt(images, noise, generator)
        out = self.paint(corrupted)
        if self.corruption == "noise":
            wide = accumulator_dtype(out)
            return F.mse_loss(out.to(wide), images.to(wide))
        return masked_patch_loss(images, patchify(out, self.patch_size), mask, self.patch_size)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images for a picture of what the method paints.

        Args:
            images: (N, C, H, W) float.
            noise, generator: as of ``forward``.

        Returns:
            Three tensors: images with the removed cells 0, or with noise; images filled, or without noise; and the mask
            (N, cells), 1 = removed.
        """
        self.check(images)
        corrupted, mask = self.corrupt(images, noise, generator)
        out = self.paint(corrupted)
        if self.corruption == "noise":
            return corrupted, out, mask
        return *pasted(images, patchify(out, self.patch_size), mask, self.patch_size, "pqc"), mask

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone.

        Args:
            images: (N, C, H, W) float, not corrupted.

        Returns:
            (N, D').
        """
        check_batch("Inpainting", 1, images=images)
        return pooled(ask(self.backbone, "Inpainting: the backbone", "images", images), len(images), "Inpainting")

    def check(self, images: Tensor) -> None:
        """Refuses images that are not of the size, dtype and device of the method."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        check_images("Inpainting", images, self.shape, last.weight)
