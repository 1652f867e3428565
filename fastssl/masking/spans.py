"""Masks of spans of a sequence, for audio."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import check_dense, check_number, check_whole, readable
from fastssl.ops._philox import random_bits
from fastssl.ops._random import check_place, same_place, seed_of
from fastssl.ops.mask_ids import in_order

_STREAM = 0x7370616E


def span_mask(
    rows: int,
    length: int,
    *,
    probability: float = 0.065,
    span: int = 10,
    min_masks: int = 0,
    lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Masks spans of time steps at random places, which may overlap (Baevski et al. 2020, section 3.1).

    Each row n has int(p L_n + u) starts, u uniform in [0, 1) for each row, at least ``min_masks`` and at most L_n - S + 1. They
    are drawn without replacement from 0 .. L_n - S, so that spans end within the row. At p = 0.065 and S = 10 about 49 % of a
    long row is masked. What fairseq and transformers call ``mask_prob`` is p S.

    Args:
        rows: N, the number of sequences.
        length: L, the number of time steps.
        probability: p, the share of the steps that are starts, in [0, 1].
        span: S, the number of steps of a span, in [1, L].
        min_masks: The least number of starts of a row.
        lengths: (N,) int64 on ``device``, L_n in [0, L], the steps of each row before its padding, which is never masked. A row
            shorter than S has no mask. None: L for all.
        generator: A ``torch.Generator`` on the device of the mask, which draws the seed. None: torch's default generator.
        seed: 64 bits for Philox in place of a generator: the same seed gives the same mask on every device. A one-element int64
            tensor on the device of the mask is read there, anew at each replay of a CUDA graph.
        device: Where the mask lies. None: the device of ``lengths``, ``seed`` or ``generator``, else the CPU.

    Returns:
        (N, L) bool, True = masked.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import span_mask
        >>> mask = span_mask(2, 20, probability=0.0, span=5, min_masks=1, lengths=torch.tensor([20, 4]), seed=0)
        >>> mask.sum(1)
        tensor([5, 0])
    """
    op = "span_mask"
    rows = check_whole(op, "rows", rows, 1)
    length = check_whole(op, "length", length, 1)
    check_number(op, "probability", probability, 0.0)
    if probability > 1:
        raise ValueError(f"{op}: probability must be in [0, 1], got {probability}")
    span = check_whole(op, "span", span, 1)
    if span > length:
        raise ValueError(f"{op}: span must be at most length {length}, got {span}")
    min_masks = check_whole(op, "min_masks", min_masks, 0)
    device = check_place(op, device)
    if lengths is not None:
        _check_lengths(op, lengths, rows, length, device)
        device = lengths.device
    seed = seed_of(op, seed, generator, device, None if lengths is None else ("lengths", lengths))
    if lengths is None:
        lengths = torch.full((rows,), length, dtype=torch.int64, device=seed.device)
    places = length - span + 1
    order = in_order(None, seed, rows, places, places).ids_keep
    share = random_bits(rows, 1, seed, _STREAM).double() * 2.0**-32
    count = (probability * lengths[:, None].double() + share).floor().long().clamp(min=min_masks)
    open_ = order < lengths[:, None] - span + 1
    chosen = open_ & (open_.cumsum(1) <= count)
    starts = torch.zeros_like(order).scatter(1, order, chosen.long())
    running = (F.pad(starts, (0, span)) - F.pad(starts, (span, 0))).cumsum(1)
    return running[:, :length] > 0


def _check_lengths(op: str, lengths, rows: int, length: int, device: torch.device | None) -> None:
    check_dense(op, "lengths", lengths, "an int64 tensor ({},)", rows)
    if lengths.dtype != torch.int64:
        raise TypeError(f"{op}: lengths must be an int64 tensor ({rows},), got {lengths.dtype}")
    if tuple(lengths.shape) != (rows,):
        raise ValueError(f"{op}: lengths must have shape ({rows},), got {tuple(lengths.shape)} (follows from rows)")
    if device is not None and not same_place(lengths.device, device):
        raise ValueError(f"{op}: lengths must be on {device}, got {lengths.device}")
    if readable(lengths) and not bool(((lengths >= 0) & (lengths <= length)).all()):
        raise ValueError(f"{op}: lengths must be in [0, {length}], got {lengths.tolist()} (follows from length)")
