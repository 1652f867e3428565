"""Span corruption of token sequences, for encoder-decoders."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import check_flag, check_number, check_whole
from fastssl.ops._random import seed_of
from fastssl.ops.mask_ids import in_order
from fastssl.ops.mask_tokens import check_token_ids

_SECOND = 0x7435  # the noise's cuts have a seed of their own, so that they do not follow those of the rest


def span_lengths(length: int, density: float = 0.15, mean_span: float = 3.0, *, eos: bool = True) -> tuple[int, int]:
    """The lengths of inputs and targets that ``corrupt_spans`` makes of rows of L tokens.

    Args:
        length: L, the number of tokens of a row, at least 2.
        density: The share of noise tokens, in (0, 1).
        mean_span: The number of noise tokens of a span on average, at least 1.
        eos: Whether inputs and targets end with an end token, which counts.

    Returns:
        (Li, Lt), the number of tokens of the inputs and of the targets.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> from fastssl.functional import span_lengths
        >>> span_lengths(512)
        (462, 104)
    """
    op = "span_lengths"
    length = check_whole(op, "length", length, 2)
    check_flag(op, "eos", eos)
    noise, spans = _noise(op, length, density, mean_span)
    return length - noise + spans + bool(eos), noise + spans + bool(eos)


def _noise(op: str, length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Numbers of noise tokens, round(L density) in [1, L - 1], and of spans, round(noise / mean) in [1, what both sides fill]."""
    check_number(op, "density", density, 0.0, 1.0)
    if density == 0:
        raise ValueError(f"{op}: density must be in (0, 1), got {density}")
    check_number(op, "mean_span", mean_span, 1.0)
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), noise, length - noise)


def corrupt_spans(
    ids: Tensor,
    *,
    sentinel_start: int,
    eos_id: int | None,
    density: float = 0.15,
    mean_span: float = 3.0,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Corrupts spans (Raffel et al. 2020, section 3.1.4): spans of noise leave the inputs and become the targets.

    A row is c_0 n_0 c_1 n_1 ... c_{S-1} n_{S-1}: kept and noise spans take turns, and none is empty. Every way to cut the kept
    tokens into S spans is equally likely, and so is every way to cut the noise tokens. With x_k = sentinel_start - k:

        inputs  = c_0 x_0 c_1 x_1 ... c_{S-1} x_{S-1} [eos]        targets = x_0 n_0 x_1 n_1 ... x_{S-1} n_{S-1} [eos]

    A row has round(L density) noise tokens, from 1 to L - 1, in S = round(noise / mean_span) spans, at least 1; halves are
    rounded to even, as in T5's code. As there, a row ends in noise, so that no sentinel closes the targets. Rows have no padding:
    T5 cuts its text into rows of L.

    Args:
        ids: (N, L) int64, L at least 2. They are not changed.
        sentinel_start: x_0, at least S - 1: ``<extra_id_0>`` of T5's vocabulary, whose sentinels count down.
        eos_id: The end token that is appended to both. None: nothing is appended.
        density: The share of noise tokens, in (0, 1).
        mean_span: The number of noise tokens of a span on average, at least 1.
        generator: A ``torch.Generator`` on the device of ``ids``, which draws the seed. None: torch's default generator.
        seed: 64 bits for Philox in place of a generator: the same seed gives the same spans on every device. A one-element int64
            tensor on the device of ``ids`` is read there, anew at each replay of a CUDA graph.

    Returns:
        The inputs (N, Li) and the targets (N, Lt), int64; ``span_lengths`` gives Li and Lt.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import corrupt_spans
        >>> ids = torch.arange(10, 20)[None]
        >>> corrupt_spans(ids, sentinel_start=99, eos_id=1, density=0.3, seed=0)  # one span of 3 tokens, at the end
        (tensor([[10, 11, 12, 13, 14, 15, 16, 99,  1]]), tensor([[99, 17, 18, 19,  1]]))
    """
    op = "corrupt_spans"
    check_token_ids(op, ids)
    rows, length = ids.shape
    if length < 2:
        raise ValueError(f"{op}: ids must be (N, L) with at least 2 tokens in a row, got shape {tuple(ids.shape)}")
    noise, spans = _noise(op, length, density, mean_span)
    sentinel_start = check_whole(op, "sentinel_start", sentinel_start, 0, 2**63)
    if sentinel_start < spans - 1:
        least = f"{spans - 1} for {spans} spans of ids, density and mean_span"
        raise ValueError(f"{op}: sentinel_start must be at least {least}, got {sentinel_start}")
    if eos_id is not None:
        eos_id = check_whole(op, "eos_id", eos_id, 0, 2**63)
    seed = seed_of(op, seed, generator, ids.device, ("ids", ids))
    kept, hidden = _cut(rows, length - noise, spans, seed), _cut(rows, noise, spans, seed ^ _SECOND)
    starts = torch.stack([kept, hidden], 2).reshape(rows, -1).cumsum(1)[:, :-1]
    part = torch.zeros_like(ids).scatter(1, starts, torch.ones_like(starts)).cumsum(1)
    sentinels, is_noise = sentinel_start - part // 2, part % 2 == 1
    inputs = _collapsed(ids, is_noise, sentinels, length - noise + spans)
    targets = _collapsed(ids, ~is_noise, sentinels, noise + spans)
    if eos_id is None:
        return inputs, targets
    end = torch.full_like(ids[:, :1], eos_id)
    return torch.cat([inputs, end], 1), torch.cat([targets, end], 1)


def _cut(rows: int, items: int, spans: int, seed: Tensor) -> Tensor:
    """(N, S) int64 of at least 1 each, sum ``items``: S - 1 cuts among items - 1 places, each subset equally likely."""
    if items == 1:
        return torch.ones(rows, 1, dtype=torch.int64, device=seed.device)
    cuts = in_order(None, seed, rows, items - 1, spans - 1).mask == 0
    which = F.pad(cuts.long(), (1, 0)).cumsum(1)
    return which.new_zeros(rows, spans).scatter_add(1, which, torch.ones_like(which))


def _collapsed(ids: Tensor, hidden: Tensor, sentinels: Tensor, length: int) -> Tensor:
    """ids, hidden, sentinels (N, L) -> (N, length): each run of hidden tokens becomes its sentinel."""
    first = hidden & ~F.pad(hidden[:, :-1], (1, 0))
    stays = first | ~hidden
    place = torch.where(stays, stays.cumsum(1) - 1, length)
    values = torch.where(first, sentinels, ids)
    return ids.new_zeros(len(ids), length + 1).scatter(1, place, values)[:, :length]
