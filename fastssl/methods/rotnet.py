"""RotNet (Gidaris et al. 2018): an image is turned by 0, 90, 180 and 270 degrees, and the network says which it was.

    x_k = rot90(x, k)      logits_k = W backbone(x_k) + b      loss = mean over x and k of -log softmax(logits_k)[k]       (eq. 3)

W is (4, feature_dim). All four rotations of each image are in the batch, 4B rows, as in the paper's code: batch normalisation then
sees the same statistics for each answer. The turns are exact: no trace of interpolation gives them away.
"""

import torch
from torch import Tensor, nn

from ._pretext import PretextMethod, check_generator, check_images


class RotNet(PretextMethod):
    """Rotation prediction around any encoder: ``RotNet(backbone)(images)`` is the loss to call ``backward`` on.

    Gidaris et al. 2018, https://arxiv.org/abs/1803.07728, equation 3.

    Args:
        backbone: the encoder, any module from images (B, C, H, H) to features (B, feature_dim). It may also return maps, a mapping
            or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.

    ``answer`` gives the rotations that are named, (4B,): those of all images without a turn, then those of all with one, ...

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = RotNet(backbone)
        >>> images = torch.rand(5, 3, 2, 2)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 8]))
        >>> method.answer(images)[1][::5].tolist()
        [0, 1, 2, 3]
    """

    def __init__(self, backbone: nn.Module, feature_dim: int | None = None):
        super().__init__(backbone, feature_dim)
        self.classifier = nn.Linear(self.feature_dim, 4)

    def question(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """images (B, C, H, H) -> logits (4B, 4), quarter turns (4B,). Nothing is drawn from ``generator``."""
        turned, right = self.turned(images)
        check_generator("RotNet", generator, images)
        return self.classifier(self.features(turned)), right

    def turned(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, H, H) -> all four rotations of each (4B, C, H, H), quarter turns (4B,)."""
        check_images("RotNet", images)
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"RotNet: images must be square, so that a turn keeps their shape, got {tuple(images.shape)}")
        turns = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return torch.cat([images.rot90(k, (2, 3)) for k in range(4)]), turns

    @torch.no_grad()
    def solve(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """For a picture: one rotation of each image, and that turned back as the network names it.

        Args:
            images: (B, C, H, H) float.
            generator: what the rotations are drawn from, by default torch's own of the device.

        Returns:
            Turned images and images turned back, both (B, C, H, H).
        """
        turned, _ = self.turned(images)
        check_generator("RotNet", generator, images)
        n = len(images)
        turns = torch.randint(4, (n,), generator=generator, device=images.device)
        rows = turns * n + torch.arange(n, device=images.device)
        named = self.classifier(self.features(turned)).argmax(1)[rows]
        shown = turned[rows]
        return shown, torch.stack([shown.rot90(-k, (2, 3)) for k in range(4)])[named, torch.arange(n, device=images.device)]
