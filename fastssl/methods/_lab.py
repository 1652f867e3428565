"""Colour as Zhang et al. 2016 quantise it: RGB <-> CIE Lab, 313 bins of (a, b), soft encoding, rebalancing, the annealed mean.

RGB (D65, sRGB) -> XYZ = M linear(RGB) -> L = 116 f(Y) - 16, a = 500 (f(X / X_n) - f(Y)), b = 200 (f(Y) - f(Z / Z_n))
z_q ~ exp(-|ab - bin_q|^2 / (2 sigma^2)) over the 5 nearest bins, 0 elsewhere                                   (section 2.1)
w_q ~ 1 / ((1 - m) p_q + m / 313),  p smoothed over the neighbours,  sum_q p_q w_q = 1                              (eq. 4)
ab(z) = sum_q bin_q z_q^(1/T) / sum_q z_q^(1/T)                                                                     (eq. 5)
"""

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype

LINEAR_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)  # D65
KNEE = 6.0 / 29.0
GRID, NEIGHBOURS = 10, 5

#: The lowest and the highest b of the bins at each a, from -90 to 100 in steps of 10. They are the corners of all cells of the grid
#: that the sRGB gamut touches, and four more, (40, 90), (100, -90), (100, -10) and (100, 0), that the paper's file has.
ROWS = (
    *((50, 90), (20, 90), (0, 90), (-20, 90), (-30, 100), (-40, 100), (-50, 100), (-50, 100), (-60, 100), (-70, 100)),
    *((-80, 90), (-80, 90), (-90, 90), (-100, 90), (-100, 80), (-110, 80), (-110, 80), (-110, 70), (-110, 70), (-90, 0)),
)


def ab_bins() -> Tensor:
    """The centres (313, 2) float32 of the bins, in the order of the paper's file."""
    rows = enumerate(ROWS, -90 // GRID)
    return torch.tensor([(GRID * a, b) for a, (low, high) in rows for b in range(low, high + 1, GRID)], dtype=torch.float32)


def _mixed(matrix: Tensor, channels: Tensor) -> Tensor:
    """matrix (3, 3) times channels (N, 3, H, W), without a matrix product, which some devices round to 11 bits."""
    return (matrix.to(channels)[:, :, None, None] * channels[:, None]).sum(2)


def rgb_to_lab(images: Tensor) -> Tensor:
    """RGB (N, 3, H, W) in [0, 1] -> Lab (N, 3, H, W), L in [0, 100], float32 (float64 for float64 images)."""
    rgb = images.to(accumulator_dtype(images)).clamp(0.0, 1.0)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mixed(torch.tensor(LINEAR_TO_XYZ), linear) / rgb.new_tensor(WHITE)[:, None, None]
    f = torch.where(xyz > KNEE**3, xyz.clamp_min(KNEE**3) ** (1 / 3), xyz / (3 * KNEE**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab (N, 3, H, W) -> RGB (N, 3, H, W); colours outside of the gamut are clipped to [0, 1]."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(f > KNEE, f**3, 3 * KNEE**2 * (f - 4 / 29)) * lab.new_tensor(WHITE)[:, None, None]
    linear = _mixed(torch.tensor(LINEAR_TO_XYZ, dtype=torch.float64).inverse(), xyz).clamp(0.0, 1.0)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055, 12.92 * linear)


class ColourBins(nn.Module):
    """The 313 bins with a weight for each, 1 until ``set_frequencies`` has seen how often they come.

    Args:
        uniform: share m of the uniform distribution in the rebalancing; 1 leaves all weights 1.
        sigma: of the Gaussians of soft encoding and smoothing, in units of a and b.
    """

    bins: Tensor
    weight: Tensor

    def __init__(self, uniform: float = 0.5, sigma: float = 5.0):
        super().__init__()
        self.uniform, self.sigma = uniform, sigma
        self.register_buffer("bins", ab_bins(), persistent=False)
        self.register_buffer("weight", torch.ones(len(self.bins)))

    def __len__(self) -> int:
        return len(self.bins)

    def distances(self, ab: Tensor) -> Tensor:
        """ab (M, 2) -> squared distances (M, 313)."""
        bins = self.bins.to(ab.dtype)
        return (ab[:, :1] - bins[:, 0]).square() + (ab[:, 1:] - bins[:, 1]).square()

    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """ab (M, 2) -> soft targets (M, 313), and the weights (M,) of their nearest bins."""
        square, nearest = self.distances(ab).topk(NEIGHBOURS, largest=False)
        share = (square / (-2 * self.sigma**2)).softmax(1)
        return ab.new_zeros(len(ab), len(self)).scatter(1, nearest, share), self.weight.to(ab.dtype)[nearest[:, 0]]

    def nearest(self, ab: Tensor) -> Tensor:
        """ab (M, 2) -> the number (M,) of the nearest bin."""
        return self.distances(ab).argmin(1)

    def count(self, ab: Tensor) -> Tensor:
        """ab (M, 2) -> how many of them each bin is the nearest of (313,) float64."""
        return torch.bincount(self.nearest(ab), minlength=len(self)).double()

    @torch.no_grad()
    def set_frequencies(self, counts: Tensor) -> None:
        """counts (313,), how often each bin came -> ``weight``."""
        near = (self.distances(self.bins.double()) / (-2 * self.sigma**2)).exp()
        p = (near * (counts.double() / counts.sum())).sum(1) / near.sum(1)
        p = p / p.sum()
        weight = 1.0 / ((1.0 - self.uniform) * p + self.uniform / len(p))
        self.weight.copy_(weight / (p * weight).sum())

    def decode(self, logits: Tensor, temperature: float) -> Tensor:
        """logits (N, 313, h, w) -> their annealed means (N, 2, h, w)."""
        share = (logits.to(accumulator_dtype(logits)) / temperature).softmax(1)
        return torch.stack([(share * self.bins[:, i, None, None].to(share.dtype)).sum(1) for i in range(2)], 1)
