"""What the methods share that ask a question about an image whose answer is known: an encoder, and the names of the answers."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.checks import accumulator_dtype

from ._checks import check_batch
from ._common import PlainMethod
from ._encoder import features_of


class OneEncoder(PlainMethod):
    """A ``PlainMethod`` of images (B, C, H, W), whose encoder may also see parts of them."""

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone: what evaluation and later tasks use.

        Args:
            images: (B, ...), what the backbone takes.

        Returns:
            (B, feature_dim), before any head.
        """
        check_images(type(self).__name__, images)
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """images or parts of them (N, C, H, W) -> features (N, feature_dim)."""
        return features_of(self.backbone, images, self.feature_dim, type(self).__name__)


class PretextMethod(OneEncoder):
    """A method whose loss is the cross-entropy of answers. A subclass gives ``question``, and ``solve`` for a picture."""

    def question(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) -> logits of the answers (N, K), the right ones (N,) int64."""
        raise NotImplementedError

    @torch.no_grad()
    def answer(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """What the method answers, for a score.

        Args:
            images: (B, C, H, W) float.
            generator: what the questions are drawn from, by default torch's own of the device.

        Returns:
            Answers and right answers, both (N,) int64 for the N questions about the B images.
        """
        logits, right = self.question(images, generator)
        return logits.argmax(1), right

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            images: (B, C, H, W) float.
            generator: what the questions are drawn from, by default torch's own of the device.

        Returns:
            Scalar float32 (float64 for a float64 encoder), the mean over the questions.

        Raises:
            TypeError: images that are not floating, or of another dtype than the encoder outside of autocast.
            ValueError: images of a shape that the task cannot ask about.
        """
        logits, right = self.question(images, generator)
        return F.cross_entropy(logits.to(accumulator_dtype(logits)), right)


def check_images(name: str, images: Tensor, least: int = 1, side: int = 1) -> None:
    """Refuses what is no floating images (B, C, H, W) with B of at least ``least`` and H and W of at least ``side``."""
    check_batch(name, least, images=images)
    if not images.is_floating_point():
        raise TypeError(f"{name}: images must be floating, such as float32 in [0, 1], got {images.dtype}")
    if images.ndim != 4 or min(images.shape[2:]) < side:
        sides = f" with sides of at least {side} pixels" if side > 1 else ""
        raise ValueError(f"{name}: images must have shape (B, C, H, W){sides}, got {tuple(images.shape)}")


def check_generator(name: str, generator: torch.Generator | None, images: Tensor) -> None:
    """Refuses what is no generator of the device of ``images``."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{name}: generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != images.device.type:
        raise ValueError(f"{name}: generator must be on the device of images, {images.device}, got {generator.device}")
