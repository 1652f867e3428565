"""Kept tokens back in their places, the mask token elsewhere, positions added, and the gradient, in plain PyTorch."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype

from .gather_tokens import gather_tokens_bwd


def restore_tokens_fwd(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos: Tensor | None, prefix: int) -> Tensor:
    """x (N, P + K, D), ids_restore (N, L), mask_token (D,), pos (P + L, D) -> (N, P + L, D) in the dtype of mask_token."""
    n, tokens, width = x.shape
    x, kept = x.to(mask_token.dtype), tokens - prefix
    taken = torch.cat([x[:, prefix:], mask_token.expand(n, 1, width)], 1)
    index = ids_restore.clamp_max(kept)[:, :, None].expand(-1, -1, width)
    out = torch.cat([x[:, :prefix], taken.gather(1, index)], 1)
    return out if pos is None else out + pos


def restore_tokens_bwd(dout: Tensor, ids_restore: Tensor, kept: int, prefix: int, need: list[bool]) -> tuple[Tensor, Tensor]:
    """dout (N, P + L, D) -> dx (N, P + K, D) in its dtype, dmask_token (D,) in float32 or wider; empty where not needed."""
    wide = accumulator_dtype(dout)
    dx, dtoken = dout.new_empty(0), dout.new_empty(0, dtype=wide)
    patches = dout[:, prefix:]
    if need[0]:
        rows = gather_tokens_bwd(patches, ids_restore.clamp_max(kept), kept + 1)[:, :kept]
        dx = torch.cat([dout[:, :prefix], rows], 1)
    if need[1]:
        dtoken = torch.where((ids_restore >= kept)[:, :, None], patches.to(wide), 0.0).sum((0, 1))
    return dx, dtoken
