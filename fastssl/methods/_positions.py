"""Positions of a grid of patches: fixed ones, and those of one grid for a grid of another size, such as that of a smaller crop."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resized_positions(positions: Tensor, before: int, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """positions (1, P + L, E) of P = ``before`` tokens in front and of L patches of ``grid`` -> (1, P + L', E) for ``wanted``.

    Bicubic, smoothed where the grid becomes smaller, as timm does it. What stands in front stays as it is.
    """
    if grid == wanted:
        return positions
    front, patches = positions[:, :before], positions[:, before:]
    maps = patches.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps.float() if maps.element_size() < 4 else maps, size=wanted, mode="bicubic", antialias=True)
    patches = maps.to(patches.dtype).flatten(2).transpose(1, 2)
    return patches if before == 0 else torch.cat([front, patches], 1)


def sine_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed positions (height width, dim) float32 of a grid, row by row; ``dim`` a multiple of 4 (He et al. 2022, appendix A).

    The first half of the channels has the column x, the second the row y, as in MAE, transformers and lightly; each half is
    sin(x w_k), then cos(x w_k), with w_k = 10000^(-k / (dim / 4)), k = 0 .. dim / 4 - 1.
    """
    if dim % 4 or dim < 4:
        raise ValueError(f"sine_positions: dim must be a multiple of 4, got {dim}")
    k = torch.arange(dim // 4, dtype=torch.float64)
    frequency = 10000.0 ** (-k / (dim // 4))
    row, column = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1).float()
