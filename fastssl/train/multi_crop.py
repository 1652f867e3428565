"""Multi-crop augmentation (Caron et al. 2020, section 3.2): a few large crops of an image and several small ones of small parts.

The large crops are called global and the small ones local. A small crop of half the side costs the encoder a quarter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.train.augment import as_float, view_steps


class MultiCrop(nn.Module):
    """images (B, C, H, W), uint8 or float in [0, 1] -> global crops (B, C, S, S) and local crops (B, C, s, s), float32 in [0, 1].

    Caron et al. 2020, https://arxiv.org/abs/2006.09882, section 3.2; the scales are those of Caron et al. 2021,
    https://arxiv.org/abs/2104.14294, section 3.1.

    Args:
        size: side S of a global crop in pixels.
        local_size: side s of a local crop.
        local_crops: number of local crops of an image, which may be 0.
        global_scale: the smallest and the largest share of the image's area that a global crop keeps.
        local_scale: the same for a local crop.
        blur: shares of the crops that are blurred, one number for each global crop, of which there are as many, and one for the
            local crops. Crops of fewer than 64 pixels are not blurred.
        solarize: share of the last global crop whose bright pixels are inverted.
        strength, mirror, colour, hue: as of ``TwoViews``.

    Examples:
        >>> large, small = MultiCrop(16, 8, local_crops=3)(torch.zeros(5, 3, 20, 20, dtype=torch.uint8))
        >>> len(large), large[0].shape, len(small), small[0].shape
        (2, torch.Size([5, 3, 16, 16]), 3, torch.Size([5, 3, 8, 8]))
    """

    def __init__(
        self,
        size: int,
        local_size: int,
        *,
        local_crops: int = 4,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        blur: Sequence[float] = (1.0, 0.1, 0.5),
        solarize: float = 0.2,
        strength: float = 0.5,
        mirror: bool = True,
        colour: bool = True,
        hue: bool = True,
    ):
        super().__init__()
        *large, small = blur
        how: dict[str, Any] = {"strength": strength, "mirror": mirror, "colour": colour, "hue": hue}
        inverted = [0.0] * (len(large) - 1) + [solarize]
        self.large = nn.ModuleList(
            nn.Sequential(*view_steps(size, global_scale, blur=share, solarize=part, **how))
            for share, part in zip(large, inverted, strict=True)
        )
        self.local_crops = local_crops
        self.small = nn.Sequential(*view_steps(local_size, local_scale, blur=small, **how))

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        images = as_float(images)
        large = [steps(images) for steps in self.large]
        if not self.local_crops:
            return large, []
        return large, list(self.small(torch.cat([images] * self.local_crops)).chunk(self.local_crops))
