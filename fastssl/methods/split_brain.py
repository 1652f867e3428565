"""Split-brain autoencoder (Zhang et al. 2017): half of an encoder tells the colours from the lightness, the other half the reverse.

    loss = - mean over cells of sum_q t_q log z_q  -  mean over cells of log y_m                                 (equations 2 and 3)

z over 313 bins of (a, b) comes from L, t is the soft encoding of the true colours; y over bins of the lightness comes from (a, b),
m is the true bin. Each half sees what the other one is asked for; the features of both side by side are those of the image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_widths
from ._colour_method import ColourMethod, lightness
from ._common import width_of
from ._encoder import features_of
from ._layers import check_encoder
from ._maps import class_decoder


class SplitBrain(ColourMethod):
    """Two encoders that tell each other's input: ``SplitBrain(of_lightness, of_colour)(images)`` is the loss.

    Zhang et al. 2017, https://arxiv.org/abs/1611.09842, equations 2 and 3, by classification both ways.

    Args:
        of_lightness: a module whose ``forward_features`` goes from lightness (N, 1, H, W) to maps (N, D, h, w), H / h = W / w a
            power of 2. Called itself, it gives the features (N, D').
        of_colour: the same for (a, b) (N, 2, H, W).
        image_size: side H = W of the images.
        stride: side in pixels of the cells that are told; where an encoder's maps are finer, their cells are taken.
        lightness_bins: number of bins of the lightness.
        uniform: as of ``Colorization``; 1, where the paper does not rebalance, weighs all colours equally.
        sigma, temperature: as of ``Colorization``.

    Raises:
        TypeError: an argument of the wrong type, such as an encoder that is no module.
        ValueError: an encoder without such maps, or an argument out of its range.

    Examples:
        >>> class Encoder(torch.nn.Conv2d):
        ...     def forward_features(self, images):
        ...         return torch.nn.Conv2d.forward(self, images)
        ...     def forward(self, images):
        ...         return self.forward_features(images).mean((2, 3))
        >>> method = SplitBrain(Encoder(1, 8, 4, 4), Encoder(2, 6, 4, 4), image_size=16)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 14]))
    """

    def __init__(
        self,
        of_lightness: nn.Module,
        of_colour: nn.Module,
        image_size: int = 32,
        *,
        stride: int = 4,
        lightness_bins: int = 100,
        uniform: float = 1.0,
        sigma: float = 5.0,
        temperature: float = 0.38,
    ):
        for argument, encoder in (("of_lightness", of_lightness), ("of_colour", of_colour)):
            check_encoder(encoder, "SplitBrain", argument)
        super().__init__(image_size, stride, uniform, sigma, temperature)
        check_widths("SplitBrain", lightness_bins=lightness_bins)
        self.lightness_bins, sides = lightness_bins, (image_size, image_size)
        told = (of_lightness, (1, *sides), len(self.colours), "of_lightness"), (of_colour, (2, *sides), lightness_bins, "of_colour")
        (self.colour_decoder, self.side), (self.lightness_decoder, self.lightness_side) = (
            class_decoder("SplitBrain", encoder, shape, stride, classes, argument) for encoder, shape, classes, argument in told
        )
        self.feature_dims = [width_of(e, None, "SplitBrain", "feature_dims", name) for e, _, _, name in told]
        self.of_lightness: Any = of_lightness  # with forward_features, which no type of torch has
        self.of_colour: Any = of_colour

    def colour_logits(self, lab: Tensor, dtype: torch.dtype) -> Tensor:
        """Lab (N, 3, H, W) -> scores of the colours (N, 313, h, w), from the lightness as the encoder sees it in ``dtype``."""
        return self.colour_decoder(self.of_lightness.forward_features(lightness(lab, dtype)))

    def lightness_logits(self, lab: Tensor, dtype: torch.dtype) -> Tensor:
        """Lab (N, 3, H, W) -> scores of the lightness (N, bins, h, w), from the colours as the encoder sees them in ``dtype``."""
        return self.lightness_decoder(self.of_colour.forward_features(colour(lab, dtype)))

    def lightness_cells(self, lab: Tensor) -> Tensor:
        """Lab (N, 3, H, W) -> the bin of the lightness of each cell (N, h, w) int64."""
        cells = F.adaptive_avg_pool2d(lab[:, 0], self.lightness_side)
        return (cells * (self.lightness_bins / 100)).long().clamp(0, self.lightness_bins - 1)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a batch of images.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1], of the size that the method was made for.

        Returns:
            Scalar float32 (float64 for a float64 model), the sum of both halves.

        Raises:
            TypeError: images that are not floating, or of another dtype than the model's outside of autocast.
            ValueError: images of another shape or device.
        """
        lab = self.lab(images)
        told = self.lightness_logits(lab, images.dtype).to(lab.dtype)
        loss = F.cross_entropy(told, self.lightness_cells(lab))
        return self.colour_loss(self.colour_logits(lab, images.dtype), lab) + loss

    def embed(self, images: Tensor) -> Tensor:
        """The features of both encoders side by side.

        Args:
            images: (N, 3, H, W) RGB in [0, 1].

        Returns:
            (N, sum of ``feature_dims``).
        """
        lab = self.lab(images)
        seen = (self.of_lightness, lightness(lab, images.dtype)), (self.of_colour, colour(lab, images.dtype))
        parts = [
            features_of(encoder, part, dim, "SplitBrain") for (encoder, part), dim in zip(seen, self.feature_dims, strict=True)
        ]
        return torch.cat(parts, 1)


def colour(lab: Tensor, dtype: torch.dtype) -> Tensor:
    """Lab (N, 3, H, W) -> (a, b) about in [-1, 1], as an encoder sees them (N, 2, H, W)."""
    return (lab[:, 1:] / 110).to(dtype)
