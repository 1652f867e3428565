"""Positions of a grid of patches for a grid of another size, as a transformer needs them for smaller crops."""

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
