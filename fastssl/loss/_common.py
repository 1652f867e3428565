"""What the contrastive losses share: reductions, unit rows, positives, row statistics, sums by class."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fastssl.checks import accumulator_dtype, savable, traced, widest
from fastssl.distributed.gather import world_size
from fastssl.ops._register import refuse_transforms
from fastssl.ops.normalize import EPS, normalize_pair
from fastssl.ops.similarity import similarity_lse_rank
from fastssl.ops.softplus_sum import softplus_sum


class RowStats(NamedTuple):
    """Of each row of a contrastive loss, without gradient: what MoCo's and CLIP's training scripts log.

    ``rank`` is the number of negatives more similar than the positive, so ``acc1`` is the share of rows with rank 0. A negative
    whose similarity exceeds the positive's by no more than rounding can explain does not count (``rank_bar``). Similarities are
    inner products as the loss saw them, before the temperature.
    """

    loss: Tensor  # (N,)
    rank: Tensor  # (N,) int32
    positive: Tensor  # (N,) similarity of the positive
    negative: Tensor  # (N,) mean similarity of the negatives
    acc1: Tensor  # ()
    acc5: Tensor  # ()


def row_stats(loss: Tensor, rank: Tensor, positive: Tensor, negative: Tensor) -> RowStats:
    with torch.no_grad():
        acc1, acc5 = (torch.where(loss.isnan(), torch.nan, (rank < k).float()).mean() for k in (1, 5))
        return RowStats(loss.detach(), rank, positive.detach(), negative.detach(), acc1, acc5)


class LocalRowsWarning(UserWarning):
    """Several processes train together, and a loss contrasts only the rows of its own process."""


_SAID: set[str] = set()


def local_rows(op: str) -> None:
    """Says once for each function, in each process, that its negatives are those of one process of several."""
    world = world_size()
    if world == 1 or op in _SAID:
        return
    _SAID.add(op)
    warnings.warn(
        f"{op}: {world} processes train together, and this loss contrasts the rows of its own process only. For all rows, join "
        f"those of the processes first (fastssl.distributed.gather_rows_with_grad; 'Several processes' in docs/losses.md, of a "
        f"method in docs/methods.md). If they are joined or meant to be local: "
        f"warnings.simplefilter('ignore', fastssl.LocalRowsWarning)",
        LocalRowsWarning,
        stacklevel=3,
    )


local_rows._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without importing dynamo: it warns when traced


def enter(op: str, *tensors) -> tuple:
    """What every loss does before its checks: ``refuse_transforms``, and its sides ``savable`` and of one dtype (``widest``)."""
    refuse_transforms(op, *tensors)
    return widest(*map(savable, tensors))


def reduce_rows(loss: Tensor, reduction: str) -> Tensor:
    return loss.flatten() if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's default threshold of 20 is wrong in the tenth digit of a float64."""
    return nn.functional.softplus(x, threshold=40.0)


def positive_loss(op: str, lse: Tensor, dot: Tensor, scale: float | Tensor, reduction: str) -> Tensor:
    """softplus(lse_i - scale dot_(i mod P)), reduced: lse (N,) over the negatives, dot (P,) of the positives, N a multiple of P."""
    if reduction == "none":
        return softplus(lse.view(-1, len(dot)) - scale * dot).flatten()
    if isinstance(scale, Tensor):
        dot, scale = (scale * dot).to(lse.dtype), 1.0
    return softplus_sum(lse, dot, scale, reduction == "mean", op)


def lse_of(op: str, x: Tensor, y: Tensor, **options) -> Tensor:
    """``similarity_lse`` of checked sides, which names ``op``."""
    return similarity_lse_rank(x, y, op=op, **options)[0]


def scalar(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A checked number itself, or ``traced`` into a graph; a one-element tensor as a 0-d tensor in the ``accumulator_dtype`` of
    ``like``, so that it does not widen what it is multiplied with."""
    if isinstance(value, Tensor):
        return savable(value).to(accumulator_dtype(like)).reshape(())
    return traced(value, like) if torch.compiler.is_compiling() else float(value)


def log_of(count: int, like: Tensor) -> float | Tensor:
    """log count of a number of rows; in a graph, where ``math.log`` would make it a constant, a tensor ()."""
    if not torch.compiler.is_compiling():
        return math.log(count)
    return like.new_full((), count, dtype=accumulator_dtype(like)).log()


def unit_rows(x: Tensor) -> Tensor:
    """x (..., D) to unit length along D, computed in ``accumulator_dtype``, in the dtype of x."""
    wide = x.to(accumulator_dtype(x))
    return (wide / wide.norm(dim=-1, keepdim=True).clamp_min(EPS)).to(x.dtype)


def dot_rows(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i>, a and b (N, D) -> (N,) in ``accumulator_dtype``."""
    wide = accumulator_dtype(a)
    return (a.to(wide) * b.to(wide)).sum(1)


def dot_sum(rows: Tensor, keys: Tensor) -> Tensor:
    """sum_j <rows_i, keys_j>, rows (N, D), keys (M, D) -> (N,) in ``accumulator_dtype``: linear, so O((N + M) D)."""
    wide = accumulator_dtype(rows)
    return (rows.to(wide) * keys.sum(0, dtype=wide)).sum(1)


def in_given_dtype(x: Tensor):
    """Context in which autocast leaves matrix products alone."""
    kind = "cpu" if x.device.type == "meta" else x.device.type  # which has no autocast to leave
    return torch.autocast(kind, enabled=False)


def paired(op: str, a: Tensor, b: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """a, b (N, D), of unit length if ``normalize``, and their dots (N,). A constant side stays one."""
    if not normalize:
        return a, b, dot_rows(a, b)
    z, dot = normalize_pair(a, b, op=op)
    x, y = z[: len(a)], z[len(a) :]
    return x if a.requires_grad else x.detach(), y if b.requires_grad else y.detach(), dot


def rank_bar(query: Tensor, key: Tensor, scale: float | Tensor) -> Tensor:
    """query, key (N, D) as the sweep sees them -> (N,) in ``accumulator_dtype``: the logit that a more similar negative exceeds.

    A key that is the positive once more (a duplicate, a collapsed encoder) is not more similar, though the same D products, added
    in another order, may give another sum. The bar is above the positive's logit by the most that this can be (Higham 2002, 3.5):

        bar_i = scale <query_i, key_i> + (D + 8) eps |scale| sum_k |query_ik key_ik|
    """
    with torch.no_grad():
        products, wide = query.double() * key.double(), accumulator_dtype(query)
        slack = (query.shape[1] + 8) * torch.finfo(wide).eps
        scale = scale.double() if isinstance(scale, Tensor) else scale
        return (scale * products.sum(1) + abs(scale) * slack * products.abs().sum(1)).to(wide)


def arange_ids(x: Tensor, start: int = 0) -> Tensor:
    """(N,) int32, one id for each row of x (N, D); 32-bit ids are the cheapest to compare."""
    if isinstance(x, FakeTensor) and not torch.compiler.is_compiling():
        with x.fake_mode:
            return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)
    return torch.arange(start, start + len(x), dtype=torch.int32, device=x.device)


def compact_ids(ids: Tensor) -> Tensor:
    """ids (N,) integers -> (N,) int64 in [0, N), equal where the given ones are; no host sync, unlike torch.unique."""
    value, order = ids.sort(stable=True)
    new = torch.cat([value.new_zeros(1, dtype=torch.int64), (value[1:] != value[:-1]).to(torch.int64)]).cumsum(0)
    return torch.empty_like(new).scatter_(0, order, new)


def class_sums(values: Tensor, ids: Tensor) -> Tensor:
    """values (N, D), compact ids (N,) -> (N, D): row c is the sum over class c, zeros beyond the last class.

    ``index_put`` with accumulation sums in a fixed order on a GPU too, where ``index_add`` does not.
    """
    return torch.zeros_like(values).index_put((ids,), values, accumulate=True)


def refuse_group(op: str, group) -> None:
    if group is not None:
        raise NotImplementedError(f"{op}: group= (negatives from other processes) is not there yet; call it without group")
