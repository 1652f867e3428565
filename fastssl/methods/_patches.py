"""Patches at drawn places of images, and the 3 x 3 tiles of a puzzle."""

import torch
from torch import Tensor

from ._pretext import check_generator, check_images

GRID = 3  # tiles of a puzzle along a side
TILE_OF_CELL = (64, 75)  # side of a tile in its cell by default: that of Noroozi and Favaro (2016)


def cut_patches(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """images (B, C, H, W); top, left (B, n) int64 in pixels -> patches (B, n, C, size, size)."""
    steps = torch.arange(size, device=images.device)
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(-1, 1, 1)
    rows, columns = top[:, :, None, None, None] + steps[:, None], left[:, :, None, None, None] + steps
    return images[image, channel, rows, columns]


def drawn_below(limit: Tensor | int, shape: tuple[int, ...], images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Whole numbers (shape) int64, each from 0 to below its ``limit``, on the device of ``images``."""
    draws = torch.rand(shape, generator=generator, device=images.device) * limit
    return torch.minimum(draws.long(), torch.as_tensor(limit, device=images.device) - 1)  # 0.99999997 * limit may round up to it


def cut_tiles(
    name: str, images: Tensor, tile_size: int | None, generator: torch.Generator | None, *, middle: bool = False
) -> Tensor:
    """images (B, C, H, W) -> one tile at a random place of each of 3 x 3 cells, row by row (B, 9, C, size, size).

    ``tile_size``: by default 64/75 of the cell's shorter side, so that neighbours seldom share an edge. ``middle``: the tiles lie
    in the middle of their cells.

    Raises:
        TypeError: images that are not floating, or a generator that is none.
        ValueError: images that are smaller than the tiles need.
    """
    check_images(name, images, side=GRID * (tile_size or 2))
    check_generator(name, generator, images)
    cell_height, cell_width = (side // GRID for side in images.shape[2:])
    size = tile_size or max(1, min(cell_height, cell_width) * TILE_OF_CELL[0] // TILE_OF_CELL[1])
    room = torch.tensor([cell_height, cell_width], device=images.device) - size
    count = (len(images), GRID * GRID, 2)
    inside = (room // 2).expand(count) if middle else drawn_below(room + 1, count, images, generator)
    cells = torch.arange(GRID * GRID, device=images.device)
    top, left = cells // GRID * cell_height + inside[..., 0], cells % GRID * cell_width + inside[..., 1]
    return cut_patches(images, top, left, size)


def paste_tiles(tiles: Tensor, height: int, width: int) -> Tensor:
    """Tiles (B, 9, C, size, size) -> a picture (B, C, height, width) of them, each in the middle of its cell, the rest white."""
    size = tiles.shape[-1]
    cell_height, cell_width = height // GRID, width // GRID
    up, before = (cell_height - size) // 2, (cell_width - size) // 2
    picture = tiles.new_ones(len(tiles), tiles.shape[2], height, width)
    for place in range(GRID * GRID):
        y, x = place // GRID * cell_height + up, place % GRID * cell_width + before
        picture[:, :, y : y + size, x : x + size] = tiles[:, place]
    return picture


def normalized(tiles: Tensor) -> Tensor:
    """Tiles (..., H, W), each of mean 0 and standard deviation 1 in each channel; an even one becomes 0."""
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    return centred / (centred.square().mean((-2, -1), keepdim=True) + 1e-5).sqrt()
