"""Generative pretraining from pixels (Chen et al. 2020): a causal transformer names each pixel of an image from those before it.

    x_t = nearest colour of a palette to pixel t, row by row       loss = - mean over t of log p(x_t | x_1 .. x_{t-1})      (eq. 1)
    features = mean over t of LayerNorm(h_t), h the tokens that enter block ``layer``                                  (section 2.3)

The palette is found by k-means over the pixels of the data. A token in front of the first pixel stands for the beginning.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_whole

from ._block import check_heads
from ._checks import check_widths
from ._image_checks import check_images
from ._palette import nearest_centres, pixel_centres
from .gpt import GPT


class ImageGPT(nn.Module):
    """A small ImageGPT: ``ImageGPT(image_size=16)(images)`` is the loss, ``complete`` continues the upper halves of images.

    Chen et al. 2020, "Generative Pretraining from Pixels", sections 2.1 to 2.3.

    Args:
        image_size: side S = H = W of the images; a transformer of S S tokens sees them.
        palette_size: number K of colours; the paper has 512.
        channels: number C of channels.
        width, depth, heads: width, number of blocks and heads of the transformer.
        layer: the features are read before this block, from 0 on; by default in the middle, where the paper found the best ones.

    ``fit_palette`` finds the palette, a buffer, which is random before that.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or a width that is no multiple of ``heads``.

    Examples:
        >>> method = ImageGPT(image_size=4, palette_size=8, width=8, depth=2, heads=2)
        >>> images = torch.rand(5, 3, 4, 4)
        >>> method.fit_palette(images)
        >>> method(images).shape, method.embed(images).shape, method.complete(images).shape
        (torch.Size([]), torch.Size([5, 8]), torch.Size([5, 3, 4, 4]))
    """

    palette: Tensor

    def __init__(
        self,
        image_size: int = 16,
        palette_size: int = 32,
        *,
        channels: int = 3,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        layer: int | None = None,
    ):
        super().__init__()
        sizes = {"image_size": image_size, "palette_size": palette_size, "channels": channels}
        check_widths("ImageGPT", **sizes, width=width, depth=depth, heads=heads)
        check_heads("ImageGPT", "width", width, "heads", heads)
        self.layer = depth // 2 if layer is None else check_whole("ImageGPT", "layer", layer, 0, depth)
        self.shape, self.feature_dim = (channels, image_size, image_size), width
        self.model = GPT(palette_size + 1, pad_id=palette_size, width=width, depth=depth, heads=heads, length=image_size**2 + 1)
        self.register_buffer("palette", torch.rand(palette_size, channels))

    def quantize(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> the beginning, then the colours of the palette, row by row (N, 1 + H W) int64."""
        check_images("ImageGPT", images, self.shape, self.model.positions)
        pixels = images.permute(0, 2, 3, 1).reshape(-1, self.shape[0])
        colours = nearest_centres(pixels, self.palette.to(pixels.dtype)).view(len(images), -1)
        return F.pad(colours, (1, 0), value=len(self.palette))

    def paint(self, tokens: Tensor) -> Tensor:
        """tokens (N, 1 + H W) -> images (N, C, H, W) in the colours of the palette."""
        return self.palette[tokens[:, 1:]].transpose(1, 2).unflatten(2, self.shape[1:])

    @torch.no_grad()
    def fit_palette(self, images: Tensor, *, iterations: int = 20, seed: int = 0) -> None:
        """Finds the palette by k-means over the pixels of images, from K of them that ``seed`` chooses.

        Args:
            images: (N, C, H, W) float, a sample of the data, with K pixels at least.
            iterations: of Lloyd's algorithm.
            seed: of the first centres.
        """
        check_images("ImageGPT", images, self.shape, self.palette)
        pixels = images.permute(0, 2, 3, 1).reshape(-1, self.shape[0])
        if len(pixels) < len(self.palette):
            raise ValueError(f"ImageGPT: images must have at least palette_size {len(self.palette)} pixels, got {len(pixels)}")
        self.palette.copy_(pixel_centres(pixels, len(self.palette), iterations, seed))

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a batch of images; divided by log 2, the bits that a pixel costs.

        Args:
            images: (N, C, H, W) float, in [0, 1], of the size that the method was made for.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over all pixels.

        Raises:
            TypeError: images that are not floating, or of another dtype than the model's outside of autocast.
            ValueError: images of another shape or device.
        """
        tokens = self.quantize(images)
        return self.model(tokens, torch.ones_like(tokens))

    @torch.no_grad()
    def complete(
        self, images: Tensor, rows: int | None = None, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images whose lower part is drawn from the model, pixel after pixel.

        Args:
            images: (N, C, H, W) float.
            rows: how many rows of them are given; None: the upper half.
            temperature: divides the scores; 0 takes the likeliest colour.
            generator: what is drawn from; None: torch's default generator.

        Returns:
            (N, C, H, W) in the colours of the palette.
        """
        size = self.shape[1]
        rows = math.ceil(size / 2) if rows is None else check_whole("ImageGPT", "rows", rows, 0, size + 1)
        tokens = self.quantize(images)
        given = tokens[:, : 1 + rows * size]
        return self.paint(self.model.generate(given, (size - rows) * size, temperature=temperature, generator=generator))

    def embed(self, images: Tensor) -> Tensor:
        """Features of a middle layer, the mean over the pixels.

        Args:
            images: (N, C, H, W) float, in [0, 1].

        Returns:
            (N, width).
        """
        tokens = self.quantize(images)[:, :-1]
        x = self.model.norm_pre(self.model.tokens(tokens) + self.model.positions[:-1])
        looked_at = self.model.looked_at(torch.ones_like(tokens, dtype=torch.bool)[:1])
        for block in list(self.model.blocks)[: self.layer]:
            x = block(x, looked_at)
        return F.layer_norm(x, x.shape[-1:]).mean(1)
