"""Inputs and eager forms of the ops around masked image modelling, for the table in ``cases.py``.

The ids of a call are constants made from arithmetic that a compiled graph can trace: shuffled by a multiplier, different for each
sample. Eager forms are the usual code: expand, gather, cat, patchify.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype


def shuffled(rows: int, length: int, like: Tensor) -> Tensor:
    """(rows, length) int64: each row a permutation of 0 .. length - 1."""
    row, place = torch.arange(rows, device=like.device)[:, None], torch.arange(length, device=like.device)[None, :]
    return ((row * 7919 + place * 104729) * 31337 % 1009 + (row * 13 + place * 29) % 17 / 32.0 + place * 1e-6).argsort(1)


def gather(x: Tensor, ids: Tensor) -> Tensor:
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def random_masking(x: Tensor, mask_ratio: float, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, L, D), noise (N, L) -> kept tokens, mask, ids_restore, as the MAE paper's code defines them."""
    n, length, _ = x.shape
    keep = int(length * (1 - mask_ratio))
    shuffle = noise.argsort(dim=1, stable=True)
    restore = shuffle.argsort(1)
    mask = torch.ones(n, length, device=x.device)
    mask[:, :keep] = 0
    return gather(x, shuffle[:, :keep]), mask.gather(1, restore), restore


def patches(images: Tensor, height: int, width: int, layout: str = "pqc") -> Tensor:
    n, c, h, w = images.shape
    cells = images.reshape(n, c, h // height, height, w // width, width)
    return torch.einsum("nchpwq->nhwpqc" if layout == "pqc" else "nchpwq->nhwcpq", cells).reshape(n, -1, c * height * width)


def embed_visible(images, weight, ids, bias=None, *, pos_embed=None, prefix_tokens=None) -> Tensor:
    """Convolution over all patches, positions, then the visible ones behind the prefix."""
    n, before = len(images), 0 if prefix_tokens is None else prefix_tokens.shape[1]
    tokens = F.conv2d(images, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    if pos_embed is not None:
        tokens = tokens + pos_embed[:, before:]
    tokens = gather(tokens, ids)
    if prefix_tokens is None:
        return tokens
    front = prefix_tokens if pos_embed is None else prefix_tokens + pos_embed[:, :before]
    return torch.cat([front.expand(n, -1, -1), tokens], 1)


def restore_tokens(x, ids_restore, mask_token, *, num_prefix_tokens=1, pos_embed=None) -> Tensor:
    """Cat with mask tokens, gather, cat with the prefix, add."""
    n, tokens, width = x.shape
    hidden = mask_token.reshape(1, 1, width).repeat(n, ids_restore.shape[1] + num_prefix_tokens - tokens, 1)
    full = gather(torch.cat([x[:, num_prefix_tokens:], hidden], 1), ids_restore)
    full = torch.cat([x[:, :num_prefix_tokens], full], 1)
    return full if pos_embed is None else full + pos_embed


def patch_loss(images, pred, mask, patch_size, *, norm_pix_loss=False, layout="pqc", loss="mse", ids=None) -> Tensor:
    """Targets of all patches, error of all patches, then the mean over the removed ones."""
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    wide = accumulator_dtype(pred)
    target = patches(images, height, width, layout).to(wide)
    if ids is not None:
        target = gather(target, ids)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    error = pred.to(wide) - target
    each = (error.abs() if loss == "l1" else error**2).mean(-1)
    return each.mean() if mask is None else (each * mask).sum() / mask.sum()


def _normal(shape, dtype, device, seed) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def token_inputs(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, L, D)."""
    return {"x": _normal(shape, dtype, device, seed)}


def gather_case(call):
    """Two thirds of the tokens, and the first of these once more."""

    def run(x):
        ids = shuffled(x.shape[0], x.shape[1], x)[:, : x.shape[1] * 2 // 3 + 1]
        return call(x, torch.cat([ids, ids[:, :1]], 1))

    return run


def restore_inputs(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, K, D): one prefix token before the K kept ones of 2 K + 1."""
    n, kept, width = shape
    return {
        "x": _normal((n, 1 + kept, width), dtype, device, seed),
        "mask_token": _normal((1, 1, width), dtype, device, seed + 1),
        "pos_embed": _normal((1, 2 * kept + 2, width), dtype, device, seed + 2),
    }


def restore_case(call):
    return lambda x, mask_token, pos_embed: call(x, shuffled(x.shape[0], 2 * x.shape[1] - 1, x), mask_token, pos_embed=pos_embed)


def embed_inputs(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, E): images (N, 3, 4, 6), patches of 2 x 2, two prefix tokens."""
    n, width = shape
    return {
        "images": _normal((n, 3, 4, 6), dtype, device, seed),
        "weight": _normal((width, 3, 2, 2), dtype, device, seed + 1),
        "bias": _normal((width,), dtype, device, seed + 2),
        "pos_embed": _normal((1, 8, width), dtype, device, seed + 3),
        "prefix_tokens": _normal((1, 2, width), dtype, device, seed + 4),
    }


def embed_case(call):
    return lambda images, weight, bias, pos_embed, prefix_tokens: call(
        images, weight, shuffled(len(images), 6, images)[:, :4], bias, pos_embed=pos_embed, prefix_tokens=prefix_tokens
    )


def pred_inputs(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (N, W): predictions of the 6 patches of 2 x W in images (N, 2, 4, 3 W)."""
    n, width = shape
    return {"pred": _normal((n, 6, 4 * width), dtype, device, seed)}


def loss_case(call, compact=False, **how):
    """Images are a constant: arithmetic on their index, neither symmetric nor periodic in the patch."""

    def run(pred):
        n, _, entries = pred.shape
        width = entries // 4
        count = torch.arange(n * 24 * width, device=pred.device, dtype=torch.float64)
        images = ((count * 0.37).sin() + (count**1.5 * 0.01).cos()).reshape(n, 2, 4, 3 * width).to(pred.dtype)
        order = shuffled(n, 6, pred)
        if compact:
            return call(images, pred[:, :4], None, (2, width), ids=order[:, :4], **how)
        return call(images, pred, (order >= 2).float(), (2, width), **how)

    return run
