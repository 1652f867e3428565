"""Some tokens of each sample, and the gradient, in plain PyTorch."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


def gather_tokens_fwd(x: Tensor, ids: Tensor) -> Tensor:
    """x (N, L, D), ids (N, K) -> (N, K, D)."""
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def gather_tokens_bwd(dout: Tensor, ids: Tensor, length: int) -> Tensor:
    """dout (N, K, D), ids (N, K) -> (N, length, D), added up in float32 or wider."""
    wide = accumulator_dtype(dout)
    out = torch.zeros(len(dout), length, dout.shape[2], dtype=wide, device=dout.device)
    return out.scatter_add_(1, ids[:, :, None].expand_as(dout), dout.to(wide)).to(dout.dtype)
