"""Colourful image colourization (Zhang et al. 2016): from the lightness of a picture, the distribution of its colours.

    z = softmax(decoder(backbone(L)))  over 313 bins of (a, b)                 t = soft encoding of the true colours     (``_lab``)
    loss = - mean over cells of w_{argmax t} sum_q t_q log z_q                                                               (eq. 2)

The weight w makes rare colours count, and a picture is painted with the annealed mean of z: neither is a regression, whose mean
of the possible colours is grey. Colours are averaged over cells of ``stride`` pixels. The encoder sees the lightness alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_widths
from ._colour_method import ColourMethod, lightness
from ._common import width_of
from ._encoder import features_of
from ._layers import check_encoder
from ._maps import class_decoder


class Colorization(ColourMethod):
    """Paints grey images: ``Colorization(backbone)(images)`` is the loss to call ``backward`` on.

    Zhang et al. 2016, https://arxiv.org/abs/1603.08511, equations 2 to 5.

    Args:
        backbone: a module whose ``forward_features`` goes from lightness (N, channels, H, W) to maps (N, D, h, w), H / h = W / w a
            power of 2. Called itself, it gives the features (N, D') of ``embed``.
        image_size: side H = W of the images.
        feature_dim: width D' of the features. By default a probe finds it.
        channels: number of channels that the encoder takes; the lightness, scaled to [-1, 1], is repeated in all of them.
        stride: side in pixels of the cells whose colour is told; where the encoder's maps are finer, their cells are taken.
        uniform: share of the uniform distribution that is mixed into the frequencies of the colours, above 0; 1 weighs all colours
            equally.
        sigma: of the soft encoding and of the smoothed frequencies, in units of a and b.
        temperature: of the annealed mean, above 0; 1 is the mean, towards 0 the most likely colour.

    ``set_frequencies`` tells the method how often each colour comes in the data; before that all weights are 1.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: a backbone without such maps, or an argument out of its range.

    Examples:
        >>> class Encoder(torch.nn.Conv2d):
        ...     def forward_features(self, images):
        ...         return torch.nn.Conv2d.forward(self, images)
        ...     def forward(self, images):
        ...         return self.forward_features(images).mean((2, 3))
        >>> method = Colorization(Encoder(1, 8, 4, 4), image_size=16)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images).shape, method.embed(images).shape, method.colorize(images).shape
        (torch.Size([]), torch.Size([5, 8]), torch.Size([5, 3, 16, 16]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int = 32,
        feature_dim: int | None = None,
        *,
        channels: int = 1,
        stride: int = 4,
        uniform: float = 0.5,
        sigma: float = 5.0,
        temperature: float = 0.38,
    ):
        check_encoder(backbone, "Colorization")
        super().__init__(image_size, stride, uniform, sigma, temperature)
        check_widths("Colorization", channels=channels)
        self.channels, seen = channels, (channels, image_size, image_size)
        self.decoder, self.side = class_decoder("Colorization", backbone, seen, stride, len(self.colours))
        self.feature_dim = width_of(backbone, feature_dim, "Colorization")
        self.backbone: Any = backbone  # with forward_features, which no type of torch has

    def colour_logits(self, lab: Tensor, dtype: torch.dtype) -> Tensor:
        """Scores of the bins in each cell, from the lightness.

        Args:
            lab: (N, 3, H, W).
            dtype: of what the encoder sees.

        Returns:
            (N, 313, h, w).
        """
        return self.decoder(self.backbone.forward_features(lightness(lab, dtype, self.channels)))

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a batch of images.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1], of the size that the method was made for.

        Returns:
            Scalar float32 (float64 for a float64 model), the weighted mean over all cells.

        Raises:
            TypeError: images that are not floating, or of another dtype than the model's outside of autocast.
            ValueError: images of another shape or device.
        """
        lab = self.lab(images)
        return self.colour_loss(self.colour_logits(lab, images.dtype), lab)

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], of which the lightness is used.

        Returns:
            (N, feature_dim).
        """
        seen = lightness(self.lab(images), images.dtype, self.channels)
        return features_of(self.backbone, seen, self.feature_dim, "Colorization")
