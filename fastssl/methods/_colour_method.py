"""What the methods share that tell the colours of images from their lightness (Zhang et al. 2016 and 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_dense, check_float_dtype, check_share
from fastssl.functional import soft_cross_entropy

from ._checks import check_positive, check_widths
from ._image_checks import check_images
from ._lab import ColourBins, lab_to_rgb, rgb_to_lab


class ColourMethod(nn.Module):
    """Colours of RGB images in cells, and images painted in them. A subclass gives ``side`` and ``colour_logits``.

    Its arguments are those of ``Colorization``.
    """

    side: int  # of the grid of cells

    def __init__(self, image_size: int, stride: int, uniform: float, sigma: float, temperature: float):
        super().__init__()
        self.name = type(self).__name__
        check_widths(self.name, image_size=image_size, stride=stride)
        check_positive(self.name, uniform=uniform, sigma=sigma, temperature=temperature)
        check_share(self.name, "uniform", uniform)
        self.colours, self.temperature = ColourBins(uniform, sigma), temperature
        self.shape = (3, image_size, image_size)

    def lab(self, images: Tensor) -> Tensor:
        """RGB (N, 3, H, W), refused where they are not of the method's size, dtype and device -> Lab, float32 or float64."""
        check_images(self.name, images, self.shape, next(self.parameters()))
        return rgb_to_lab(images)

    def cells(self, lab: Tensor) -> Tensor:
        """Lab (N, 3, H, W) -> the colours (N h w, 2) of the cells, (a, b)."""
        return F.adaptive_avg_pool2d(lab[:, 1:], self.side).permute(0, 2, 3, 1).reshape(-1, 2)

    def colour_logits(self, lab: Tensor, dtype: torch.dtype) -> Tensor:
        """Scores of the bins in each cell, from the lightness.

        Args:
            lab: (N, 3, H, W).
            dtype: of what the encoder sees.

        Returns:
            (N, 313, h, w).
        """
        raise NotImplementedError

    def colour_loss(self, logits: Tensor, lab: Tensor) -> Tensor:
        """logits (N, 313, h, w), Lab (N, 3, H, W) -> the weighted mean of the cross-entropies of all cells."""
        target, weight = self.colours.encode(self.cells(lab.detach()))  # what is asked for is a constant
        rows = logits.permute(0, 2, 3, 1).reshape(len(target), -1)
        return soft_cross_entropy(rows, target, student_temperature=1.0, teacher_temperature=None, weight=weight)

    @torch.no_grad()
    def count(self, images: Tensor) -> Tensor:
        """How often each colour comes.

        Args:
            images: (N, 3, H, W) RGB in [0, 1].

        Returns:
            (313,) float64: in how many cells of the images each bin is the nearest one, to be added up over a data set.
        """
        return self.colours.count(self.cells(self.lab(images)))

    def set_frequencies(self, counts: Tensor) -> None:
        """Weighs colours by how rare they are in the data.

        Args:
            counts: (313,) float, the sum of ``count`` over the training images.

        Raises:
            TypeError: counts that are not floating.
            ValueError: counts of another shape, below 0, not finite, or all 0. Nothing changes then.
        """
        op = f"{self.name}.set_frequencies"
        check_dense(op, "counts", counts, f"a tensor ({len(self.colours)},)")
        check_float_dtype(op, "counts", counts)
        if counts.shape != (len(self.colours),):
            raise ValueError(f"{op}: counts must have shape ({len(self.colours)},), got {tuple(counts.shape)}")
        if not (counts.isfinite() & (counts >= 0)).all() or not counts.any():
            raise ValueError(f"{op}: counts must be finite, at least 0 and not all 0, got {counts.min()} to {counts.max()}")
        self.colours.set_frequencies(counts)

    @torch.no_grad()
    def colorize(self, images: Tensor) -> Tensor:
        """The lightness of images in the colours that the method finds for it.

        Args:
            images: (N, 3, H, W) RGB in [0, 1].

        Returns:
            (N, 3, H, W) RGB in [0, 1].
        """
        lab = self.lab(images)
        ab = F.interpolate(
            self.colours.decode(self.colour_logits(lab, images.dtype), self.temperature), lab.shape[2:], mode="bilinear"
        )
        return lab_to_rgb(torch.cat([lab[:, :1], ab.to(lab.dtype)], 1))


def lightness(lab: Tensor, dtype: torch.dtype, channels: int = 1) -> Tensor:
    """Lab (N, 3, H, W) -> L in [-1, 1] as an encoder sees it (N, channels, H, W)."""
    return (lab[:, :1] / 50 - 1).to(dtype).expand(-1, channels, -1, -1)
