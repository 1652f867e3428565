"""SigLIP (Zhai et al. 2023): an image encoder and a text encoder with one space of embeddings, every pair judged on its own.

    x = unit(W_i image_encoder(images)),  y = unit(W_t text_encoder(tokens)),  l_ij = e^s <x_i, y_j> + b

Equation 1: (1 / B) sum_ij of the logistic loss of every pair, positive or not. Scale e^s and bias b are learned."""

import math

import torch
from torch import Tensor, nn

from fastssl.checks import check_number
from fastssl.functional import siglip_loss

from ._checks import check_negatives, check_positive
from ._common import ranks_of
from ._image_text import _ImageText


class SigLIP(_ImageText):
    """SigLIP around any two encoders: ``SigLIP(image_encoder, text_encoder)(images, tokens)`` is the loss.

    Zhai et al. 2023, https://arxiv.org/abs/2303.15343, equation 1.

    Args:
        image_encoder, text_encoder: as for ``CLIP``.
        embed_dim: width D of the common space.
        image_dim, text_dim: widths of the features. By default probes find them.
        scale: where the learned scale e^s starts. ``logit_scale`` holds s.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).
        bias: where the learned bias b starts. The paper's -10 (section 3.2) says that at first nearly every pair is a negative.

    Raises:
        TypeError: an argument of the wrong type, such as an encoder that is no module.
        ValueError: an argument out of its range, or an encoder whose features no rule covers.

    Examples:
        >>> words = torch.nn.Sequential(torch.nn.EmbeddingBag(50, 8))
        >>> method = SigLIP(torch.nn.Linear(6, 8), words, embed_dim=4, text_dim=8)
        >>> method(torch.rand(5, 6), torch.randint(50, (5, 3))).shape
        torch.Size([])
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        embed_dim: int = 128,
        *,
        image_dim: int | None = None,
        text_dim: int | None = None,
        scale: float = 10.0,
        bias: float = -10.0,
        negatives: str = "global",
    ):
        check_positive("SigLIP", scale=scale)
        check_number("SigLIP", "bias", bias)
        super().__init__(image_encoder, text_encoder, embed_dim, image_dim, text_dim, math.log(scale))
        self.negatives = check_negatives("SigLIP", negatives)
        self.logit_bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, images: Tensor, tokens: Tensor, image_id: Tensor | None = None, text_id: Tensor | None = None) -> Tensor:
        """The loss of all pairs of an image with a text.

        Args:
            images: (B, ...), B at least 2.
            tokens: (B, L) int64, the text of each image.
            image_id: (B,) integers. An image and a text of equal id are a positive pair. By default only pair i is one.
            text_id: (B,) integers, by default ``image_id``.

        Returns:
            Scalar float32: the sum over all pairs, over B.

        Raises:
            TypeError: ids that are no integers.
            ValueError: images and tokens of different B, a B below 2, ids of another length, or ``text_id`` without ``image_id``.
        """
        self.check_pairs(images, tokens, image_id=image_id, text_id=text_id)
        if text_id is not None and image_id is None:
            raise ValueError("SigLIP: text_id was given without image_id")
        return siglip_loss(
            self.project_image(images),
            self.project_text(tokens),
            self.logit_scale.exp(),
            self.logit_bias,
            normalize=True,
            image_id=image_id,
            text_id=text_id,
            group=ranks_of(self),
        )
