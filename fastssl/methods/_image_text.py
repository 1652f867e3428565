"""What CLIP and SigLIP share: an image encoder and a text encoder with one space of embeddings."""

import torch
from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_vector

from ._checks import check_batch, check_widths
from ._common import width_of
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
