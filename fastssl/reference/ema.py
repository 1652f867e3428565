"""Exponential moving average of a list of tensors, in plain PyTorch; ``torch._foreach_lerp_`` where it applies.

lerp      e + w (p - e), or p - (1 - w)(p - e) from w = 1/2 on        mul_add   round(m e) + w p
"""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops._philox import random_16_bits


def ema_update_(
    ema: list[Tensor],
    params: list[Tensor],
    shadow: list[Tensor],
    momentum: float,
    momentum_scalar: Tensor | None,
    mul_add: bool,
    stochastic: bool,
    seed: int,
    seed_scalar: Tensor | None,
) -> None:
    """In place on ``ema`` and ``shadow``; the scalars, where given, stand in for the numbers."""
    plain = not stochastic and momentum_scalar is None and all(e.dtype == p.dtype for e, p in zip(ema, params, strict=True))
    if plain and mul_add:
        params = [p.clone() if p.numel() and p.data_ptr() == e.data_ptr() else p for e, p in zip(ema, params, strict=True)]
        torch._foreach_mul_(ema, momentum)
        torch._foreach_add_(ema, params, alpha=1.0 - momentum)
    elif plain:
        torch._foreach_lerp_(ema, params, 1.0 - momentum)
    else:
        m = momentum if momentum_scalar is None else momentum_scalar.double()
        key = seed if seed_scalar is None else seed_scalar
        for stream, (e, p) in enumerate(zip(ema, params, strict=True)):
            new = _average(e, p, m, mul_add)
            e.copy_(round_stochastically(new, e, stream, key) if stochastic else new)
    for s, e in zip(shadow, ema, strict=bool(shadow)):
        s.copy_(e)


def _average(e: Tensor, p: Tensor, m: float | Tensor, mul_add: bool) -> Tensor:
    wide = accumulator_dtype(e)
    e, p = e.to(wide), p.to(wide)
    if isinstance(m, Tensor):
        kept, weight = m.to(wide), (1.0 - m).to(wide)
        return torch.addcmul(e * kept, p, weight) if mul_add else torch.lerp(e, p, weight)
    return torch.add(e * m, p, alpha=1.0 - m) if mul_add else torch.lerp(e, p, 1.0 - m)


def round_stochastically(new: Tensor, like: Tensor, stream: int, seed: int | Tensor) -> Tensor:
    """float32 -> the dtype of ``like``, up or down with the probabilities that make it right on average.

    Bits below the mantissa of the dtype get random ones added, then are cut off. Infinities and NaN stay; below float16's normal
    range it is rounded to the nearest. Element order is that of ``like`` in memory.
    """
    if like.dtype not in (torch.bfloat16, torch.float16):
        return new
    dropped = 16 if like.dtype == torch.bfloat16 else 13
    order = sorted(range(like.dim()), key=lambda d: (-like.stride()[d], d))
    flat = new.permute(order).contiguous()
    noise = random_16_bits(flat.numel(), stream, seed, flat.device).reshape(flat.shape) & ((1 << dropped) - 1)
    bits = flat.view(torch.int32).long() + noise
    cut = (bits & ~((1 << dropped) - 1)).to(torch.int32).view(torch.float32)
    rounded = torch.where(flat.isfinite(), cut, flat)
    return rounded.permute([order.index(d) for d in range(like.dim())]).to(like.dtype)
