"""What is known of a row after some of its columns, and how two such parts become one.

    part of columns     lse = log sum exp(s),    top the largest s,    total = sum exp(s - top),    peak the column of top
    two parts           top = max(top_1, top_2),   total = total_1 e^(top_1 - top) + total_2 e^(top_2 - top)

A kernel on a GPU keeps top and the exponentials in base 2; ``unit`` is log2(e) there, otherwise 1. A kernel that proved all logits
small takes no maximum: top is 0 and peak is -1. Such a part says nothing about its largest logit but that it is at most lse, so lse
takes the place of top as soon as another part joins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype
from fastssl.ops._register import OWNERS

NOWHERE = 1 << 40  # a peak beyond every column: the kernel named none
_BEYOND = torch.iinfo(torch.int32).max


def unit_of(x: Tensor) -> float:
    """log2(e) where the kernels for x count in base 2, otherwise 1."""
    triton = x.device.type == "cuda" and x.dtype != torch.float64 and OWNERS["similarity_fwd"]["CUDA"] == "Triton"
    return 1.0 / math.log(2.0) if triton else 1.0


class State(NamedTuple):
    """Of rows (N,): the state that their backward needs, after the columns that were seen."""

    top: Tensor  # (N,)
    total: Tensor  # (N,)
    peak: Tensor  # (N,) int64, a column of the joined batch; -1 where a kernel took no maximum

    @staticmethod
    def of(state: Tensor, peak: Tensor, start: int) -> State:
        """From a kernel's state (2, N) and peak (N,) of columns start, start + 1, ..."""
        return State(state[0], state[1], torch.where(peak < 0, -1, peak.to(torch.int64) + start))

    @staticmethod
    def of_nothing(x: Tensor, count: int) -> State:
        """The state of rows that have seen no column yet."""
        top = torch.full((count,), -torch.inf, dtype=accumulator_dtype(x), device=x.device)
        return State(top, torch.zeros_like(top), torch.full((count,), NOWHERE, dtype=torch.int64, device=x.device))

    def cut(self, rows: slice) -> State:
        """The state of some of the rows."""
        return State(self.top[rows], self.total[rows], self.peak[rows])

    def stacked(self) -> Tensor:
        """(2, N), as a kernel takes it."""
        return torch.stack([self.top, self.total])

    def peak_in(self, start: int, count: int) -> Tensor:
        """(N,) int32, as a kernel takes it that computes with columns start ... start + count - 1."""
        local = self.peak - start
        inside = (local >= 0) & (local < count)
        return torch.where(self.peak < 0, -1, torch.where(inside, local, _BEYOND)).to(torch.int32)

    def with_a_top(self, unit: float) -> State:
        """The same, where log-sum-exp takes the place of a maximum that was not taken."""
        bounded = (self.top == 0) & (self.peak < 0)
        lse = self.total.log() * unit
        top, total = torch.where(bounded, lse, self.top), torch.where(bounded & (self.total > 0), 1.0, self.total)
        return State(top, total, torch.where(self.peak < 0, NOWHERE, self.peak))

    def joined(self, other: State, unit: float) -> State:
        """The state after the columns of both, which must have a top."""
        top = torch.maximum(self.top, other.top)
        shift = torch.where(top == -torch.inf, 0.0, top)  # every column is excluded in both
        total = self.total * torch.exp((self.top - shift) / unit) + other.total * torch.exp((other.top - shift) / unit)
        return State(top, total, torch.where(other.top > self.top, other.peak, self.peak))

    def lse(self, unit: float) -> Tensor:
        """log-sum-exp (N,), -inf where every column is excluded."""
        return self.top / unit + self.total.log()
