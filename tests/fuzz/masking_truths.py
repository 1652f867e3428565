"""The functions of masked image modelling written plainly, in float64: what ``masking.py`` compares with."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from fastssl.masking import MaskIds
from fastssl.ops.block_mask import _aspects
from fastssl.reference import block_mask as block_reference
from fastssl.reference import mask_ids as ids_reference
from fastssl.reference import mask_tokens as token_reference
from fastssl.testing import masking as plain


def num_kept(length: int, mask_ratio: float, rounding: str) -> int:
    kept = int(length * (1 - mask_ratio))
    other = {"mask_floor": length - int(length * mask_ratio), "mask_ceil": length - math.ceil(length * mask_ratio)}
    return other.get(rounding, max(1, kept) if rounding == "keep_one" else kept)


def mask_ids(size, mask_ratio=0.75, noise=None, generator=None, seed=None, num_keep=None, rounding="keep_floor", device=None):
    rows, length = size
    keep = num_kept(length, mask_ratio, rounding) if num_keep is None else num_keep
    if noise is None and seed is None:
        noise = torch.rand(rows, length)
    seed = seed if seed is None or isinstance(seed, Tensor) else torch.tensor(seed)
    shuffle, restore, mask = ids_reference.mask_ids(noise, seed, rows, length, keep)
    return MaskIds(shuffle[:, :keep], shuffle[:, keep:], restore, mask)


def random_masking(x, mask_ratio, noise=None, generator=None, seed=None, num_keep=None, rounding="keep_floor"):
    found = mask_ids(x.shape[:2], mask_ratio, noise, generator, seed, num_keep, rounding)
    return plain.gather(x, found.ids_keep), found.mask, found.ids_restore


def random_token_mask(size, mask_ratio=0.6, mask_class_token=False, device=None, noise=None, generator=None):
    rows, length = size
    keep = int(length * (1 - mask_ratio)) if mask_class_token else max(1, int((length - 1) * (1 - mask_ratio)) + 1)
    noise = torch.rand(rows, length) if noise is None else noise.clone()
    if not mask_class_token:
        noise[:, 0] = -1.0
    order = noise.argsort(dim=1, stable=True)
    return order[:, :keep], order[:, keep:]


def embed_visible(images, weight, ids, bias=None, pos_embed=None, prefix_tokens=None):
    before = 0 if prefix_tokens is None else prefix_tokens.shape[-2]
    prefix = None if prefix_tokens is None else prefix_tokens.reshape(1, before, -1)
    bias = None if bias is None else bias.reshape(-1)
    pos = None if pos_embed is None else pos_embed.reshape(1, *pos_embed.shape[-2:])
    length = images.shape[2] // weight.shape[2] * (images.shape[3] // weight.shape[3])
    if pos is not None and pos.shape[1] == length and before:
        pos = torch.cat([pos.new_zeros(1, before, pos.shape[2]), pos], 1)
    return plain.embed_visible(images, weight, ids, bias, pos_embed=pos, prefix_tokens=prefix)


def restore_tokens(x, ids_restore, mask_token, num_prefix_tokens=1, pos_embed=None):
    pos = None if pos_embed is None else pos_embed.reshape(1, *pos_embed.shape[-2:])
    return plain.restore_tokens(x, ids_restore, mask_token, num_prefix_tokens=num_prefix_tokens, pos_embed=pos)


def masked_patch_loss(
    images, pred, mask, patch_size, norm_pix_loss=False, layout="pqc", loss="mse", ids=None, eps=1e-6, empty="error"
):
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    target = plain.patches(images, height, width, layout)
    target = target if ids is None else plain.gather(target, ids)
    weight = torch.ones_like(target[:, :, 0]) if mask is None else mask.to(target.dtype)
    if not weight.any() and empty == "zero":
        return torch.zeros((), dtype=torch.float64) + 0.0 * torch.zeros_like(pred).mul(pred.nan_to_num()).sum()
    pred = torch.where(weight[:, :, None] == 0, 0.0, pred)
    target = torch.where(weight[:, :, None] == 0, 0.0, target)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + float(eps)) ** 0.5
    error = pred - target
    each = (error.abs() if loss == "l1" else error**2).mean(-1)
    return (torch.where(weight == 0, 0.0, each) * weight).sum() / weight.sum()


def patchify(images, patch_size, layout="pqc"):
    return plain.patches(images, *((patch_size,) * 2 if isinstance(patch_size, int) else patch_size), layout)


def unpatchify(patches, patch_size, layout="pqc", image_size=None):
    p, q = (patch_size,) * 2 if isinstance(patch_size, int) else patch_size
    n, length, entries = patches.shape
    size = (round(length**0.5) * p, round(length**0.5) * q) if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.zeros(n, entries // (p * q), height, width, dtype=patches.dtype)
    for place in range(length):
        top, left = place // (width // q) * p, place % (width // q) * q
        cells = patches[:, place].reshape(n, p, q, -1).permute(0, 3, 1, 2)
        images[:, :, top : top + p, left : left + q] = cells if layout == "pqc" else patches[:, place].reshape(n, -1, p, q)
    return images


def grid_mask(rows, grid, mask_ratio=0.6, unit=1, rounding="mask_ceil", noise=None, generator=None, seed=None, device=None):
    down, across = grid[0] // unit, grid[1] // unit
    units = mask_ids((rows, down * across), mask_ratio, noise, None, seed, None, rounding).mask.view(rows, down, across)
    return units.repeat_interleave(unit, 1).repeat_interleave(unit, 2).flatten(1)


def tube_mask(rows, frames, length, mask_ratio=0.9, rounding="mask_floor", noise=None, generator=None, seed=None, device=None):
    found = mask_ids((rows, length), mask_ratio, noise, None, seed, None, rounding)
    keep, removed = (torch.cat([ids + frame * length for frame in range(frames)], 1) for ids in found[:2])
    restore = torch.cat([keep, removed], 1).argsort(1)
    return MaskIds(keep, removed, restore, found.mask.repeat(1, frames))


def block_mask(rows, grid, num_masked, min_block=None, max_block=None, aspect=(0.3, 1 / 0.3), attempts=10, exact=False,
                  generator=None, seed=None, device=None):  # fmt: skip
    one = not isinstance(num_masked, Tensor)
    goals = torch.full((rows,), num_masked) if one else num_masked
    least = (max(1, min(4, num_masked)) if one else 4) if min_block is None else min_block
    table = _aspects(float(aspect[0]), float(aspect[1]), torch.device("cpu"))
    seed = torch.tensor(0 if seed is None else seed) if not isinstance(seed, Tensor) else seed.reshape(())
    most = grid[0] * grid[1] if max_block is None else max_block
    return block_reference.block_mask(goals, seed, table, rows, *grid, least, most, attempts, exact)


def mask_tokens(ids, mask_id, vocab_size, probability=0.15, mask_share=0.8, random_share=0.1, special=None, ignore_index=-100,
                  generator=None, seed=None):  # fmt: skip
    pick = round(probability * 2**32)
    hide, swap = (min(pick, round(probability * share * 2**32)) for share in (mask_share, mask_share + random_share))
    seed = seed.reshape(()) if isinstance(seed, Tensor) else torch.tensor(seed or 0)
    return token_reference.mask_tokens(ids, special, seed, mask_id, vocab_size, hide, swap, pick, ignore_index)


def corrupt_spans(ids, sentinel_start, eos_id, density=0.15, mean_span=3.0, generator=None, seed=None):
    """The text itself, which ``restored`` finds in the two parts."""
    return ids


def restored(inputs: Tensor, targets: Tensor, sentinel_start: int, eos_id) -> Tensor:
    """The text whose spans were exchanged for sentinels; sentinels are no tokens of it."""
    rows = []
    for left, right in zip(inputs.tolist(), targets.tolist(), strict=True):
        left, right = (part if eos_id is None else part[:-1] for part in (left, right))
        places = [right.index(sentinel_start - k) for k in range(len(right)) if sentinel_start - k in right] + [len(right)]
        spans = {right[at]: right[at + 1 : end] for at, end in pairwise(places)}
        rows.append([token for given in left for token in spans.get(given, [given])])
    return torch.tensor(rows)


def span_mask(rows, length, probability=0.065, span=10, min_masks=0, lengths=None, generator=None, seed=None, device=None):
    """No violation in any row, as ``span_violations`` counts them."""
    return torch.zeros(rows, dtype=torch.int64)


def span_violations(mask: Tensor, span: int, min_masks: int, lengths: Tensor | None) -> Tensor:
    """Of each row: runs shorter than a span, steps masked beyond its length, and no span where there must be one."""
    found = []
    for row, end in zip(mask.tolist(), [mask.shape[1]] * len(mask) if lengths is None else lengths.tolist(), strict=True):
        runs = [len(run) for run in "".join("#" if step else " " for step in row).split()]
        must = min_masks > 0 and end >= span
        found.append(sum(run < span for run in runs) + sum(row[end:]) + (must and not runs))
    return torch.tensor(found)


def multi_block_mask(rows, grid, **how):
    """No violation in any row, as ``block_violations`` counts them."""
    return torch.zeros(rows, dtype=torch.int64)


def block_violations(context: Tensor, targets: Tensor, grid, least: int, exactly: int | None) -> Tensor:
    """Of each row: a context that is not ascending, within the grid and of the right size; targets that are no blocks within it."""
    (height, width), count = grid, context.shape[1]
    down, across = targets // width, targets % width
    sides = [t.amax(-1) - t.amin(-1) + 1 for t in (down, across)]
    ascending = (targets[..., 1:] > targets[..., :-1]).all(-1)
    blocks = (sides[0] * sides[1] == targets.shape[-1]) & ascending & (targets >= 0).all(-1) & (targets < height * width).all(-1)
    right = (context[:, 1:] > context[:, :-1]).all(1) & ((context >= 0) & (context < height * width)).all(1)
    return (~blocks).sum(1) + (~right).long() + int(count < least if exactly is None else count != exactly)


def span_lengths(length, density=0.15, mean_span=3.0, eos=True):
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), noise, length - noise)
    return length - noise + spans + eos, noise + spans + eos
