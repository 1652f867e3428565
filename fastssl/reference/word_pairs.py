"""Negative sampling of pairs of words in plain PyTorch. The equations stand in ``fastssl/ops/word_pairs.py``."""

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


def _row(table: Tensor, ids: Tensor) -> Tensor:
    """Rows (B, D) of a table, zeros where an id (B,) is left out."""
    rows = table[ids.clamp_min(0)].to(accumulator_dtype(table))
    return torch.where(ids[:, None] < 0, 0.0, rows)


def word_pairs_fwd(inputs: Tensor, outputs: Tensor, input_ids: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """inputs (V, D), outputs (U, D), input_ids (B, C), target_ids (B, T) -> loss (B,), h (B, D), pull (B, D), slope (B, T)."""
    count = (input_ids >= 0).sum(1).clamp_min(1)[:, None]
    h = sum(_row(inputs, ids) for ids in input_ids.unbind(1)) / count
    loss, pull = h.new_zeros(len(h)), torch.zeros_like(h)
    slope = h.new_empty(target_ids.shape)
    for t, ids in enumerate(target_ids.unbind(1)):
        row, sign = _row(outputs, ids), 1.0 if t else -1.0
        u = sign * (h * row).sum(1)
        loss += torch.where(ids < 0, 0.0, torch.nn.functional.softplus(u, threshold=40.0))
        slope[:, t] = torch.where(ids < 0, 0.0, sign * torch.sigmoid(u))
        pull += slope[:, t, None] * row
    return loss, h, pull / count, slope


def _sums(source: Tensor, factor: Tensor | None, weight: Tensor, to: Tensor, rows: int) -> Tensor:
    """(rows, D): row ``to[b, t]`` gets weight_b factor_bt source_b. A column of ``to`` at a time: (B, T, D) is never there."""
    out = source.new_zeros(rows, source.shape[1])
    for t, each in enumerate(to.unbind(1)):
        scale = weight if factor is None else weight * factor[:, t]
        out.index_add_(0, each, scale[:, None] * source)
    return out


def word_pairs_rows(
    source: Tensor, factor: Tensor | None, weight: Tensor, ids: Tensor, table: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """source (B, D), factor (B, T), weight (B,), ids (B, T) -> the ids that occur, rising, (R,), and the sums of each (R, D)."""
    rows, to = ids.unique(return_inverse=True)
    left_out = int((rows < 0).sum())
    sums = _sums(source, factor, weight, to, len(rows))
    return rows[left_out:], sums[left_out:].to(dtype)


def word_pairs_table(source: Tensor, factor: Tensor | None, weight: Tensor, ids: Tensor, table: int, dtype: torch.dtype) -> Tensor:
    """The same sums as a whole table (table, D), with zeros in the rows that do not occur."""
    return _sums(source, factor, weight, ids.where(ids >= 0, table), table + 1)[:-1].to(dtype)
