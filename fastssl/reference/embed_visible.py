"""Visible patches as rows, their gradient, and the rows that the product is added to, in plain PyTorch."""

import torch
from torch import Tensor

from fastssl.ops._patches import to_patches

from .gather_tokens import gather_tokens_bwd, gather_tokens_fwd


def visible_patches_fwd(images: Tensor, ids: Tensor, height: int, width: int, prefix: int, dtype: torch.dtype) -> Tensor:
    """images (N, C, H, W), ids (N, K) -> (N, prefix + K, C height width) in ``dtype``, rows of the prefix 0."""
    rows = gather_tokens_fwd(to_patches(images, height, width), ids).to(dtype)
    return torch.cat([rows.new_zeros(len(rows), prefix, rows.shape[2]), rows], 1)


def visible_patches_bwd(dpatches: Tensor, ids: Tensor, shape: list[int], height: int, width: int, prefix: int) -> Tensor:
    """dpatches (N, prefix + K, C height width) -> (N, C, H, W) of ``shape``, zero where no patch is visible."""
    n, c, h, w = shape
    rows = gather_tokens_bwd(dpatches[:, prefix:], ids, h // height * (w // width))
    cells = rows.reshape(n, h // height, w // width, c, height, width)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def visible_positions(
    ids: Tensor, bias: Tensor | None, pos: Tensor | None, prefix: Tensor | None, width: int, dtype: torch.dtype
) -> Tensor:
    """ids (N, K), bias (E,), pos (P + L, E), prefix (P, E), all in ``dtype`` -> (N, P + K, E): all but the product."""
    n, before = len(ids), 0 if prefix is None else len(prefix)
    out = torch.zeros(n, before + ids.shape[1], width, dtype=dtype, device=ids.device)
    if prefix is not None:
        out[:, :before] = prefix if pos is None else prefix + pos[:before]
    if pos is not None:
        out[:, before:] = pos[before:][ids]
    if bias is not None:
        out[:, before:] += bias
    return out
