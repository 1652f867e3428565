"""Autoencoders of corrupted images: context encoder (Pathak et al. 2016) without its adversary, denoising (Vincent et al. 2008).

    out = decoder(encoder(corrupted))
    blocks:  corrupted = image, random cells of a grid filled by the mean of the rest      loss = mean over these of (out - image)^2
    noise:   corrupted = image + sigma n, n normal                                         loss = mean over all of (out - image)^2

The encoder gives maps (N, D, h, w); the decoder doubles them up to the images' size. No connection goes around the maps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_choice
from fastssl.functional import masked_patch_loss, patchify

from ._ask import ask
from ._checks import check_batch, check_positive, check_widths
from ._corruption import CorruptedImages, upsampling
from ._encoder import pooled
from ._image_checks import check_ratio
from ._layers import check_encoder
from ._maps import map_shape
from ._masked import pasted


class Inpainting(CorruptedImages):
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
        self.backbone = backbone
        self.decoder = upsampling(*map_shape("Inpainting", backbone, self.shape)[:2], image_size, channels)

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
