"""CLIP (Radford et al. 2021): an image encoder and a text encoder with one space of embeddings.

    x = unit(W_i image_encoder(images)),  y = unit(W_t text_encoder(tokens)),  l_ij = e^s <x_i, y_j>

Figure 3: the mean of the cross-entropies of the rows and of the columns of l. The scale e^s is learned.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.functional import clip_loss

from ._checks import check_negatives, check_positive
from ._common import ranks_of
from ._image_text import _ImageText


class CLIP(_ImageText):
    """CLIP around any two encoders: ``CLIP(image_encoder, text_encoder)(images, tokens)`` is the loss.

    Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3.

    Args:
        image_encoder: any module from images (B, ...) to features (B, image_dim). It may also return maps, a mapping or a tuple:
            docs/methods.md, Encoders.
        text_encoder: any module from tokens (B, L) int64 to features (B, text_dim), or what the image encoder may return.
        embed_dim: width D of the common space.
        image_dim, text_dim: widths of the features. By default probes find them.
        temperature: where the learned scale starts: e^s = 1 / temperature. ``logit_scale`` holds s.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).
        max_scale: the largest scale. ``logit_scale`` is kept at most at its logarithm, as in the paper (section 2.5).

    Raises:
        TypeError: an argument of the wrong type, such as an encoder that is no module.
        ValueError: an argument out of its range, or an encoder whose features no rule covers.

    Examples:
        >>> words = torch.nn.Sequential(torch.nn.EmbeddingBag(50, 8))
        >>> method = CLIP(torch.nn.Linear(6, 8), words, embed_dim=4, text_dim=8)
        >>> images, tokens = torch.rand(5, 6), torch.randint(50, (5, 3))
        >>> method(images, tokens).shape, method.embed_text(tokens).shape
        (torch.Size([]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        embed_dim: int = 128,
        *,
        image_dim: int | None = None,
        text_dim: int | None = None,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        negatives: str = "global",
    ):
        check_positive("CLIP", temperature=temperature, max_scale=max_scale)
        super().__init__(image_encoder, text_encoder, embed_dim, image_dim, text_dim, -math.log(temperature))
        self.max_scale, self.negatives = max_scale, check_negatives("CLIP", negatives)

    def forward(self, images: Tensor, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """The loss of pairs.

        Args:
            images: (B, ...), B at least 2.
            tokens: (B, L) int64, the text of each image.
            ids: (B,) integers. Pairs of equal id (a picture or a caption that comes twice) are not each other's negatives.

        Returns:
            Scalar float32, the mean of both directions.

        Raises:
            TypeError: ``ids`` that are no integers.
            ValueError: images and tokens of different B, a B below 2, or ``ids`` of another length.
        """
        self.check_pairs(images, tokens, ids=ids)
        with torch.no_grad():  # the parameter, not its exponential: a scale that was cut off has a gradient to come back by
            self.logit_scale.clamp_(max=math.log(self.max_scale))
        how: dict[str, Any] = {"normalize": True, "ids": ids, "group": ranks_of(self)}
        return clip_loss(self.project_image(images), self.project_text(tokens), self.logit_scale.exp(), **how)
