"""The operands of one matrix of similarities, as one record.

The contracts in ``ops`` make a record of a caller's arguments, and plain PyTorch and the Triton launchers make one of what the
dispatcher hands them. The dispatcher knows no records: the fields have the order of the ops' schemas, so that ``_fwd(*arguments)``
calls an op.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def cut(t: Tensor | None, piece: slice | int) -> Tensor | None:
    """Some rows of a tensor, where there is one."""
    return None if t is None else t[piece]


def factor_of(scale: float, scale_factor: Tensor | None, dtype: torch.dtype) -> float | Tensor:
    """What similarities are multiplied with: scale, times the element of ``scale_factor`` as a scalar of ``dtype``."""
    return scale if scale_factor is None else scale * scale_factor.reshape(()).to(dtype)


class Similarity(NamedTuple):
    """s_ij = scale scale_factor <x_i, y_j> + y_bias_j, left out where x_id_i = y_id_j; threshold_i: count the s_ij above it."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    scale: float
    scale_factor: Tensor | None  # one element
    x_id: Tensor | None  # (N,)
    y_id: Tensor | None  # (M,)
    y_bias: Tensor | None = None  # (M,)
    threshold: Tensor | None = None  # (N,)

    def swapped(self) -> "Similarity":
        """The transposed matrix: rows of y against columns of x. ``y_bias`` stays the bias of the same rows, now those of ``x``."""
        return Similarity(self.y, self.x, self.scale, self.scale_factor, self.y_id, self.x_id, self.y_bias)

    def part(self, rows: slice, columns: slice) -> "Similarity":
        """The operands of a block of the matrix."""
        x, y, scale, scale_factor, x_id, y_id, y_bias, threshold = self
        ids = cut(x_id, rows), cut(y_id, columns)
        return Similarity(x[rows], y[columns], scale, scale_factor, *ids, cut(y_bias, columns), cut(threshold, rows))


class SimilarityArguments(NamedTuple):
    """The operands as the ops take them: y is None where it is x and has its ids, which selects the symmetric schedule."""

    x: Tensor  # (N, D)
    y: Tensor | None  # (M, D)
    scale: float
    scale_factor: Tensor | None  # one element
    x_id: Tensor | None  # (N,)
    y_id: Tensor | None  # (M,)
    y_bias: Tensor | None = None  # (M,)
    threshold: Tensor | None = None  # (N,)

    def operands(self) -> Similarity:
        x, y, scale, scale_factor, x_id, y_id, y_bias, threshold = self
        if y is None:
            y, y_id = x, x_id
        return Similarity(x, y, scale, scale_factor, x_id, y_id, y_bias, threshold)


class SigmoidPair(NamedTuple):
    """l_ij = scale scale_factor <x_i, y_j> + bias + bias_term, a positive pair where x_id_i = y_id_j."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    scale: float
    scale_factor: Tensor | None  # one element
    bias: float
    bias_term: Tensor | None  # one element
    x_id: Tensor  # (N,)
    y_id: Tensor  # (M,)
    x_weight: Tensor | None  # (N,); a positive pair counts x_weight_i + y_weight_j times, once where there are no weights
    y_weight: Tensor | None  # (M,), given with x_weight

    def swapped(self) -> "SigmoidPair":
        """The transposed matrix of pairs: rows of y against columns of x."""
        x, y, scale, scale_factor, bias, bias_term, x_id, y_id, x_weight, y_weight = self
        return SigmoidPair(y, x, scale, scale_factor, bias, bias_term, y_id, x_id, y_weight, x_weight)

    def part(self, rows: slice, columns: slice) -> "SigmoidPair":
        """The operands of a block of the matrix."""
        x, y, scale, scale_factor, bias, bias_term, x_id, y_id, x_weight, y_weight = self
        weights = cut(x_weight, rows), cut(y_weight, columns)
        return SigmoidPair(x[rows], y[columns], scale, scale_factor, bias, bias_term, x_id[rows], y_id[columns], *weights)
