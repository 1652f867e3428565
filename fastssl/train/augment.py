"""SimCLR's augmentation (Chen et al. 2020, appendix A) on whole batches, by kornia, on the device that holds the images.

Random resized crop, mirror, colour jitter, grey, and blur where the view is large enough to bear it.
"""

import math

import kornia.augmentation as K
import kornia.color
import torch
from torch import Tensor, nn

BLUR_FROM = 64  # views smaller than this have no detail to spare; the paper, too, leaves blur out on 32 x 32


class TwoViews(nn.Module):
    """images (B, C, H, W), uint8 or float in [0, 1] -> two independent views (B, C, S, S) float32, values in [0, 1].

    Args:
        size: S, the side of a view.
        min_scale: smallest share of the image's area that a crop keeps. The paper's 0.08 is for 224 x 224.
        strength: of the colour jitter; 1 is the paper's, 0.5 its choice for 32 x 32.
        mirror: flip half of the views; wrong for digits and text.
        colour: jitter saturation and grey a fifth of the views, which needs C = 3; without it only brightness and contrast change.
        hue: jitter the hue too.
    """

    def __init__(
        self,
        size: int,
        *,
        min_scale: float = 0.2,
        strength: float = 0.5,
        mirror: bool = True,
        colour: bool = True,
        hue: bool = True,
    ):
        super().__init__()
        steps: list[nn.Module] = [K.RandomResizedCrop((size, size), scale=(min_scale, 1.0), cropping_mode="resample")]
        if mirror:
            steps.append(K.RandomHorizontalFlip())
        if strength > 0:
            tone = 0.8 * strength
            turn = min(0.5, 0.2 * strength) if colour and hue else 0.0
            steps.append(K.ColorJitter(tone, tone, tone if colour else 0.0, turn, p=0.8))
        if colour:
            steps.append(K.RandomGrayscale(p=0.2))
        if size >= BLUR_FROM:
            side = 2 * math.ceil(0.05 * size) + 1
            steps.append(K.RandomGaussianBlur((side, side), (0.1, 2.0), p=0.5))
        self.steps = nn.Sequential(*steps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = as_float(images)
        return self.steps(images), self.steps(images)

    def one(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> one view (B, C, S, S)."""
        return self.steps(as_float(images))


def lab_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """RGB (B, 3, H, W) in [0, 1] -> lightness and colour of Lab, (B, 3, H, W) each for encoders of 3 channels: LLL, ab0."""
    lab = kornia.color.rgb_to_lab(images)
    lightness, a, b = (lab / 100.0).split(1, dim=1)
    return lightness.expand_as(images), torch.cat([a, b, torch.zeros_like(a)], 1)


def as_float(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]; floating images are returned as they are."""
    return images if images.is_floating_point() else images.float().div_(255.0)
