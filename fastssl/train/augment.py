"""SimCLR's augmentation (Chen et al. 2020, appendix A) on whole batches, by kornia, on the device that holds the images.

Random resized crop, mirror, colour jitter, grey, and blur where the view is large enough to bear it.
"""

import math
from typing import Any

import kornia.augmentation as K
import kornia.color
import torch
from torch import Tensor, nn

BLUR_FROM = 64  # views smaller than this have no detail to spare; the paper, too, leaves blur out on 32 x 32


def view_steps(
    size: int,
    scale: tuple[float, float],
    *,
    strength: float,
    mirror: bool,
    colour: bool,
    hue: bool,
    blur: float,
    solarize: float = 0.0,
) -> list[nn.Module]:
    """The augmentations that make one view of side ``size`` in their order, as ``TwoViews`` describes them.

    ``scale``: the smallest and the largest share of the image's area that a crop keeps. ``blur`` and ``solarize``: the shares of
    the views that are blurred, where they are of ``BLUR_FROM`` pixels at least, and whose bright pixels are inverted.
    """
    steps: list[nn.Module] = [K.RandomResizedCrop((size, size), scale=scale, cropping_mode="resample")]
    if mirror:
        steps.append(K.RandomHorizontalFlip())
    if strength > 0:
        tone = 0.8 * strength
        turn = min(0.5, 0.2 * strength) if colour and hue else 0.0
        steps.append(K.ColorJitter(tone, tone, tone if colour else 0.0, turn, p=0.8))
    if colour:
        steps.append(K.RandomGrayscale(p=0.2))
    if size >= BLUR_FROM and blur > 0:
        side = 2 * math.ceil(0.05 * size) + 1
        steps.append(K.RandomGaussianBlur((side, side), (0.1, 2.0), p=blur))
    if solarize > 0:
        steps.append(K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=solarize))
    return steps


class TwoViews(nn.Module):
    """images (B, C, H, W), uint8 or float in [0, 1] -> two independent views (B, C, S, S) float32, values in [0, 1].

    Args:
        size: side S of a view in pixels.
        min_scale: smallest share of the image's area that a crop keeps. The paper's 0.08 is for 224 x 224.
        strength: strength of the colour jitter. The paper has 1, and 0.5 for 32 x 32.
        mirror: whether half of the views are flipped, which is wrong for digits and text.
        colour: whether saturation is jittered and a fifth of the views becomes grey, which needs C = 3. Without it only brightness
            and contrast change.
        hue: whether the hue is jittered too.

    Examples:
        >>> view0, view1 = TwoViews(16)(torch.zeros(5, 3, 20, 20, dtype=torch.uint8))
        >>> view0.shape, view1.dtype
        (torch.Size([5, 3, 16, 16]), torch.float32)
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
        self.steps = nn.Sequential(
            *view_steps(size, (min_scale, 1.0), strength=strength, mirror=mirror, colour=colour, hue=hue, blur=0.5)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = as_float(images)
        return self.steps(images), self.steps(images)

    def one(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> one view (B, C, S, S)."""
        return self.steps(as_float(images))


class WeakAndStrong(nn.Module):
    """images (B, C, H, W), uint8 or float in [0, 1] -> a weakly and a strongly changed view (B, C, S, S), for FixMatch.

    The weak one is cropped a little and mirrored. The strong one is a view of ``TwoViews``, from which a square is cut out as well,
    as in Cutout (DeVries and Taylor 2017); the paper chooses other changes of colour and shape (RandAugment).

    Args:
        size: side S of a view in pixels.
        options: those of ``TwoViews``, which are for the strong view; ``mirror`` is for both.

    Examples:
        >>> weak, strong = WeakAndStrong(16)(torch.zeros(5, 3, 20, 20, dtype=torch.uint8))
        >>> weak.shape, strong.shape
        (torch.Size([5, 3, 16, 16]), torch.Size([5, 3, 16, 16]))
    """

    def __init__(self, size: int, *, mirror: bool = True, **options: Any):
        super().__init__()
        self.weak = TwoViews(size, min_scale=0.7, strength=0.0, mirror=mirror, colour=False)
        self.strong = TwoViews(size, mirror=mirror, **options)
        self.cut = K.RandomErasing(scale=(0.02, 0.15), value=0.5, p=0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = as_float(images)
        return self.weak.one(images), self.cut(self.strong.one(images))


def lab_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Lightness and colour of images, as two views for CMC.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        Two tensors (B, 3, H, W) for encoders of 3 channels: the lightness L of Lab thrice, and (a, b, 0), all over 100.

    Examples:
        >>> lightness, colour = lab_views(torch.full((1, 3, 2, 2), 0.5))
        >>> bool(colour.abs().max() < 1e-3), lightness.shape
        (True, torch.Size([1, 3, 2, 2]))
    """
    lab = kornia.color.rgb_to_lab(images)
    lightness, a, b = (lab / 100.0).split(1, dim=1)
    return lightness.expand_as(images), torch.cat([a, b, torch.zeros_like(a)], 1)


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1].

    Args:
        images: (B, C, H, W), uint8, or floating and then returned as they are.

    Returns:
        (B, C, H, W) floating.

    Examples:
        >>> as_float(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[0.0, 1.0]]]]
    """
    return images if images.is_floating_point() else images.float().div_(255.0)
