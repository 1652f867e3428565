"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): an image encoder and a text encoder with one space of embeddings.

    x = unit(W_i image_encoder(images)),  y = unit(W_t text_encoder(tokens)),  l_ij = e^s <x_i, y_j> (+ b in SigLIP)

CLIP, figure 3: mean of the cross-entropies of the rows and of the columns of l. SigLIP, eq. 1: (1 / B) sum_ij of the logistic
loss of every pair, positive or not. Scale e^s and bias b are learned.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_number, check_vector
from fastssl.functional import clip_loss, siglip_loss

from ._common import check_batch, check_negatives, check_positive, check_widths, ranks_of, width_of
from ._encoder import features_of


class _ImageText(nn.Module):
    """Two encoders, each with a linear projection without bias, and the log of the scale."""

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        embed_dim: int,
        image_dim: int | None,
        text_dim: int | None,
        log_scale: float,
    ):
        super().__init__()
        name = type(self).__name__
        check_widths(name, embed_dim=embed_dim)
        self.image_dim = width_of(image_encoder, image_dim, name, "image_dim", "image_encoder")
        self.text_dim = width_of(text_encoder, text_dim, name, "text_dim", "text_encoder")
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.image_projection = nn.Linear(self.image_dim, embed_dim, bias=False)
        self.text_projection = nn.Linear(self.text_dim, embed_dim, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(log_scale))

    def project_image(self, images: Tensor) -> Tensor:
        name = type(self).__name__
        return self.image_projection(features_of(self.image_encoder, images, self.image_dim, name, "image_encoder", "images"))

    def project_text(self, tokens: Tensor) -> Tensor:
        name = type(self).__name__
        return self.text_projection(features_of(self.text_encoder, tokens, self.text_dim, name, "text_encoder", "tokens"))

    def embed_image(self, images: Tensor) -> Tensor:
        """images (B, ...) -> unit rows (B, embed_dim)."""
        return nn.functional.normalize(self.project_image(images), dim=1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """tokens (B, L) int64 -> unit rows (B, embed_dim)."""
        return nn.functional.normalize(self.project_text(tokens), dim=1)

    def check_pairs(self, images: Tensor, tokens: Tensor, **ids: Tensor | None) -> None:
        name = type(self).__name__
        check_batch(name, 1, images=images, tokens=tokens)
        if len(images) != len(tokens) or len(images) < 2:
            shapes = f"{tuple(images.shape)} and {tuple(tokens.shape)}"
            raise ValueError(f"{name}: images (B, ...) and tokens (B, L) must have the same B of at least 2, got {shapes}")
        for argument, value in ids.items():
            if value is not None:
                check_vector(name, argument, value, len(images), INTEGERS, "images", images)


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
