"""Rows of masked image modelling, masks of patches, frames and tokens, and the ops under them."""

import torch
from torch import Tensor

from fastssl import functional, masking
from fastssl.testing import masking as plain

from . import masking_truths as truths
from .table import Case, Maker

ROUNDINGS = ("keep_floor", "mask_floor", "mask_ceil", "keep_one")


def _ids(m: Maker, rows: int, length: int, count: int) -> Tensor:
    return torch.rand(rows, length, generator=m.generator).argsort(1)[:, :count].contiguous()


def _seed(m: Maker):
    number = m.randrange(-(2**63), 2**63)
    return m.choice((number, torch.tensor(number), torch.tensor([number])))


def _drawn(m: Maker, *shape: int) -> dict:
    """Noise, a seed, or neither."""
    kind = m.choice(("noise", "noise", "seed", "seed", "torch"))
    return {
        "noise": m.rows(*shape) if kind == "noise" else None,
        "generator": None,
        "seed": _seed(m) if kind == "seed" else None,
        "device": m.maybe("cpu"),
    }


def _seeded(m: Maker) -> dict:
    return {"generator": None, "seed": m.maybe(_seed(m), 0.8), "device": m.maybe("cpu")}


# --- which patches ---------------------------------------------------------------------------------------------------------


def _given(arguments: dict) -> bool:
    return arguments.get("noise") is not None or arguments.get("seed") is not None


def _seen_ids(found, arguments: dict):
    """Of what torch drew, that it is a partition."""
    if _given(arguments):
        return tuple(found)
    both = torch.cat([found.ids_keep, found.ids_mask], 1)
    return both.sort(1).values, both.gather(1, found.ids_restore), found.mask.sum(1)


def _mask_ids(m: Maker) -> dict:
    size = m.choice((1, 2, 5)), m.choice((1, 6, 17))
    return {
        "size": size,
        "mask_ratio": m.choice((0, 0.0, 0.3, 0.75, 0.99, 1)),  # no float whose next one rounds to another number
        **_drawn(m, *size),
        "num_keep": m.maybe(m.randrange(size[1] + 1)),
        "rounding": m.choice(ROUNDINGS),
    }


def _num_kept(m: Maker) -> dict:
    return {"length": m.choice((1, 6, 196)), "mask_ratio": m.choice((0.0, 0.3, 0.75, 1)), "rounding": m.choice(ROUNDINGS)}


def _random_masking(m: Maker) -> dict:
    x = m.rows(m.choice((1, 3)), m.choice((1, 6, 17)), m.choice((1, 5)))
    made = _mask_ids(m) | _drawn(m, *x.shape[:2])
    made = {name: made[name] for name in ("noise", "generator", "seed", "rounding")}
    return {"x": x.requires_grad_(m.random() < 0.5), "mask_ratio": m.choice((0.0, 0.75, 1)), **made, "num_keep": None}


def _seen_masking(found, arguments: dict):
    return found if _given(arguments) else (found[0].detach() * 0, found[1].sum(1), found[2].sort(1).values)


def _random_token_mask(m: Maker) -> dict:
    size = m.choice((1, 3)), m.choice((1, 2, 9))
    return {
        "size": size,
        "mask_ratio": m.choice((0.0, 0.6, 1)),
        "mask_class_token": m.random() < 0.5,
        "device": None,
        "noise": m.maybe(m.rows(*size).abs(), 0.7),
        "generator": None,
    }


def _seen_token_mask(found, arguments: dict):
    return found if _given(arguments) else torch.cat(found, 1).sort(1).values


# --- tokens and patches ----------------------------------------------------------------------------------------------------


def _leaf(m: Maker, *shape: int) -> Tensor:
    return m.rows(*shape).requires_grad_(m.random() < 0.5)


def _gather_tokens(m: Maker) -> dict:
    n, length = m.choice((1, 3)), m.choice((1, 5))
    ids = torch.randint(0, length, (n, m.choice((0, 1, 7))), generator=m.generator)
    return {"x": _leaf(m, n, length, m.choice((1, 6))), "ids": ids}


def _embed_visible(m: Maker) -> dict:
    n, c, width, before = m.choice((1, 3)), m.choice((1, 3)), m.choice((1, 5)), m.choice((0, 1, 2))
    (p, q), (down, across) = m.choice(((1, 1), (2, 3))), m.choice(((1, 1), (2, 3)))
    length, places = down * across, m.choice((0, before)) + down * across
    return {
        "images": _leaf(m, n, c, p * down, q * across),
        "weight": _leaf(m, width, c, p, q),
        "ids": _ids(m, n, length, m.randrange(length + 1)),
        "bias": m.maybe(_leaf(m, width), 0.7),
        "pos_embed": m.maybe(_leaf(m, *m.choice(((), (1,))), places, width), 0.7),
        "prefix_tokens": _leaf(m, 1, before, width) if before else None,
    }


def _restore_tokens(m: Maker) -> dict:
    n, length, width, before = m.choice((1, 3)), m.choice((1, 6)), m.choice((1, 5)), m.choice((0, 1, 2))
    kept = m.randrange(length + 1)
    return {
        "x": _leaf(m, n, before + kept, width),
        "ids_restore": _ids(m, n, length, length),
        "mask_token": _leaf(m, *m.choice(((), (1, 1))), width),
        "num_prefix_tokens": before,
        "pos_embed": m.maybe(_leaf(m, *m.choice(((), (1,))), before + length, width), 0.7),
    }


def _patch_loss(m: Maker) -> dict:
    n, c, (p, q), (down, across) = m.choice((1, 3)), m.choice((1, 3)), m.choice(((1, 2), (2, 2))), m.choice(((1, 1), (2, 3)))
    length, entries, kind = down * across, c * p * q, m.choice(("mask", "mask", "shares", "bool", "ids"))
    rows = m.randrange(length) + 1 if kind == "ids" else length
    mask = None if kind == "ids" else torch.rand(n, length, generator=m.generator)
    if kind in ("mask", "bool"):
        mask = (mask < 0.7).to(torch.bool if kind == "bool" else torch.float32)
        mask[0, 0] = 1
    return {
        "images": m.rows(n, c, p * down, q * across),
        "pred": _leaf(m, n, rows, entries),
        "mask": mask,
        "patch_size": p if p == q and m.random() < 0.5 else (p, q),
        "norm_pix_loss": m.random() < 0.4,
        "layout": m.choice(("pqc", "cpq")),
        "loss": m.choice(("mse", "l1")),
        "ids": _ids(m, n, length, rows) if kind == "ids" else None,
        "eps": m.choice((1e-6, 0.1)),
        "empty": m.choice(("error", "zero")),
    }


def _patchify(m: Maker) -> dict:
    p, q = m.choice(((1, 1), (2, 3)))
    images = _leaf(m, m.choice((1, 2)), m.choice((1, 3)), 2 * p, 3 * q)
    return {"images": images, "patch_size": (p, q), "layout": m.choice(("pqc", "cpq"))}


def _unpatchify(m: Maker) -> dict:
    (p, q), c, square = m.choice(((1, 1), (2, 3))), m.choice((1, 3)), m.random() < 0.5
    patches = _leaf(m, 2, 4 if square else 6, c * p * q)
    size = None if square else (2 * p, 3 * q)
    return {"patches": patches, "patch_size": (p, q), "layout": m.choice(("pqc", "cpq")), "image_size": size}


# --- masks of more than single patches -------------------------------------------------------------------------------------


def _grid_mask(m: Maker) -> dict:
    rows, unit, (down, across) = m.choice((1, 3)), m.choice((1, 2)), m.choice(((1, 1), (2, 3)))
    made = {"rows": rows, "grid": (down * unit, across * unit), "mask_ratio": m.choice((0.0, 0.6, 1)), "unit": unit}
    return made | {"rounding": m.choice(ROUNDINGS), **_drawn(m, rows, down * across)}


def _tube_mask(m: Maker) -> dict:
    rows, length = m.choice((1, 3)), m.choice((1, 6))
    made = {"rows": rows, "frames": m.choice((1, 3)), "length": length, "mask_ratio": m.choice((0.0, 0.6, 1))}
    return made | {"rounding": m.choice(ROUNDINGS), **_drawn(m, rows, length)}


def _block_mask(m: Maker) -> dict:
    rows, (height, width) = m.choice((1, 3)), m.choice(((5, 6), (9, 4)))
    goals = torch.randint(0, height * width + 1, (rows,), generator=m.generator)
    low = m.choice((4, 4, 1))
    return {
        "rows": rows,
        "grid": (height, width),
        "num_masked": m.choice((0, 9, goals)),
        "min_block": m.choice((None, low)),
        "max_block": m.maybe(low + 7),
        "aspect": m.choice(((0.3, 1 / 0.3), (1, 1))),
        "attempts": m.choice((1, 10)),
        "exact": m.random() < 0.5,
        **_seeded(m),
    }


def _seen_blocks(found, arguments: dict):
    return found if _given(arguments) else found.sum((1, 2)) * arguments.get("exact", False)


def _multi_block(m: Maker) -> dict:
    return {
        "rows": m.choice((1, 3)),
        "grid": m.choice(((4, 5), (8, 8))),
        "num_targets": m.choice((1, 3)),
        "target_scale": (0.15, 0.2),
        "target_aspect": (0.75, 1.5),
        "context_scale": (0.85, 1.0),
        "min_keep": m.choice((1, 4)),
        "context_keep": 3,
        **_seeded(m),
        "seed": m.randrange(-(2**63), 2**63),  # fake tensors have no sizes to draw
    }


def _span_mask(m: Maker) -> dict:
    rows, length = m.choice((1, 3)), m.choice((8, 30))
    return {
        "rows": rows,
        "length": length,
        "probability": m.choice((0, 0.1, 1.0)),
        "span": m.choice((1, 5)),
        "min_masks": m.choice((0, 2)),
        "lengths": m.maybe(torch.randint(0, length + 1, (rows,), generator=m.generator)),
        **_seeded(m),
    }


# --- tokens of text --------------------------------------------------------------------------------------------------------


def _text(m: Maker, least: int) -> Tensor:
    return torch.randint(0, 90, (m.choice((1, 3)), m.choice((least, 9))), generator=m.generator)


def _mask_tokens(m: Maker) -> dict:
    ids = _text(m, 1)
    return {
        "ids": ids,
        "mask_id": 91,
        "vocab_size": m.choice((92, 2**32 - 1)),
        "probability": m.choice((0, 0.15, 1.0)),
        "mask_share": m.choice((0.0, 0.8)),
        "random_share": m.choice((0.1, 0.2)),
        "special": m.maybe(ids < 30, 0.5),
        "ignore_index": m.choice((-100, 0)),
        "generator": None,
        "seed": _seed(m),
    }


def _seen_tokens(found, arguments: dict):
    return found if _given(arguments) else tuple(t * 0 for t in found)


def _corrupt(m: Maker) -> dict:
    how = {"density": m.choice((0.15, 0.5)), "mean_span": m.choice((1, 3.0))}
    return {
        "ids": _text(m, 2),
        "sentinel_start": 1000,
        "eos_id": m.maybe(1),
        **how,
        "generator": None,
        "seed": m.maybe(_seed(m), 0.8),
    }


def _span_lengths(m: Maker) -> dict:
    return {
        "length": m.choice((2, 568)),
        "density": m.choice((0.15, 0.5)),
        "mean_span": m.choice((1, 3.0)),
        "eos": m.random() < 0.5,
    }


def _seen_targets(found, arguments: dict):
    if isinstance(found, Tensor):
        return found
    return truths.block_violations(*found, *(arguments[name] for name in ("grid", "min_keep", "context_keep")))


def _seen_spans(found, arguments: dict):
    if found.dtype != torch.bool:
        return found
    names = ("span", "min_masks", "lengths")
    return truths.span_violations(found, *(arguments[name] for name in names))


def _seen_corrupt(found, arguments: dict):
    ids, first = arguments["ids"], arguments["sentinel_start"]
    if first <= 500 or (ids >= 500).any():  # a sentinel may be a token of the text
        return ids * 0
    return found if isinstance(found, Tensor) else truths.restored(*found, first, arguments["eos_id"])


def _numbers(found, arguments: dict):
    return torch.tensor(found)


CASES = [
    Case("num_kept", functional.num_kept, _num_kept, truths.num_kept, _numbers),
    Case("mask_ids", functional.mask_ids, _mask_ids, truths.mask_ids, _seen_ids),
    Case("random_masking", functional.random_masking, _random_masking, truths.random_masking, _seen_masking),
    Case("random_token_mask", functional.random_token_mask, _random_token_mask, truths.random_token_mask, _seen_token_mask),
    Case("gather_tokens", functional.gather_tokens, _gather_tokens, plain.gather),
    Case("embed_visible", functional.embed_visible, _embed_visible, truths.embed_visible),
    Case("restore_tokens", functional.restore_tokens, _restore_tokens, truths.restore_tokens),
    Case("masked_patch_loss", functional.masked_patch_loss, _patch_loss, truths.masked_patch_loss),
    Case("patchify", functional.patchify, _patchify, truths.patchify),
    Case("unpatchify", functional.unpatchify, _unpatchify, truths.unpatchify),
    Case("grid_mask", masking.grid_mask, _grid_mask, truths.grid_mask, lambda t, a: t if _given(a) else t.sum(1)),
    Case("tube_mask", masking.tube_mask, _tube_mask, truths.tube_mask, _seen_ids),
    Case("block_mask", masking.block_mask, _block_mask, truths.block_mask, _seen_blocks),
    Case("multi_block_mask", masking.multi_block_mask, _multi_block, truths.multi_block_mask, _seen_targets),
    Case("span_mask", masking.span_mask, _span_mask, truths.span_mask, _seen_spans),
    Case("mask_tokens", masking.mask_tokens, _mask_tokens, truths.mask_tokens, _seen_tokens),
    Case("corrupt_spans", masking.corrupt_spans, _corrupt, truths.corrupt_spans, _seen_corrupt),
    Case("span_lengths", masking.span_lengths, _span_lengths, truths.span_lengths, _numbers),
]
