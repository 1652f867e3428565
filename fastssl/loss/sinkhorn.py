"""Sinkhorn's balanced assignment of samples to prototypes, as one potential of each prototype (Cuturi 2013; Caron et al. 2020).

    plan    exp((x_mk + b_k) / T + row term_m), rows that sum to 1, and columns that sum to rows / K after enough iterations
    start   b_k = -(top_k + T log sum_m exp((x_mk - top_k) / T))                  the first normalisation of prototypes
    step    b_k <- b_k - T log sum_m softmax((x_m + b) / T)_k                     rows, then prototypes
    result  softmax((x + b) / T): the last normalisation of rows is left to whoever uses the potential

The constants 1 / K, 1 / rows and the first division by the sum of everything cancel, so SwAV, DINOv2, DINOv3 and lightly, whose
code differs in them, all have this result. Each head's largest potential is made 0, which changes no softmax and saves digits. The
ops are those of ``ops/sinkhorn.py``; what is of size (G, K) is computed here, in float64. The first potentials are differences
from the largest logit of a head, so that float32 holds them to 6e-8 of their spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import check_constant, check_dense, check_float_dtype, check_whole
from fastssl.distributed.class_sums import largest_of_all, sum_of_all
from fastssl.distributed.ranks import join
from fastssl.ops._patches import dense_rows
from fastssl.ops._register import refuse_transforms
from fastssl.ops._targets import check_heads, check_temperature, on_device
from fastssl.ops.sinkhorn import sinkhorn_start, sinkhorn_step

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks

_OP = "sinkhorn"
#: Passes of a call at most: a slip such as 2^31 - 1 would take for ever.
MOST_ITERATIONS = 1 << 16


def _largest(values: Tensor, heads: list[int]) -> Tensor:
    """The largest value of each head (G, K) or (G, 1)."""
    if len(heads) == 1:
        return values.amax(1, keepdim=True)
    return torch.cat([part.amax(1, keepdim=True).expand_as(part) for part in values.split(heads, 1)], 1)


def _everywhere(top: Tensor, total: Tensor, scale: Tensor, joined: Joined) -> tuple[Tensor, Tensor]:
    """Largest logits and sums over the rows of all processes."""
    largest = largest_of_all(joined, top)
    own = torch.where(total == 0, 0.0, total * ((top - largest) / scale).exp())
    return largest, sum_of_all(joined, own)


def _of_parts(starts: list[tuple[Tensor, Tensor]], scale: Tensor) -> tuple[Tensor, Tensor]:
    """Largest logits and sums (G, K) of parts as those of all their rows."""
    top = torch.stack([part for part, _ in starts]).amax(0)
    shifted = [torch.where(total == 0, 0.0, total * ((part - top) / scale).exp()) for part, total in starts]
    return top, torch.stack(shifted).sum(0)


def _layout(logits: Tensor, separate) -> tuple[int, int, tuple[int, ...]]:
    """inner, G and the shape of the result: row m of the flattened logits belongs to group (m // inner) % G."""
    columns = logits.shape[-1]
    if separate is None:
        return 1, 1, (columns,)
    last = logits.dim() - 1
    separate = check_whole(_OP, "separate", separate, -last - 1, last)
    if separate == -1:
        raise ValueError(f"{_OP}: separate must be a dimension of samples, got -1, that of the prototypes")
    separate %= last + 1
    inner = 1
    for size in logits.shape[separate + 1 : -1]:
        inner *= size
    return inner, logits.shape[separate], (logits.shape[separate], *(1,) * (last - separate - 1), columns)


def sinkhorn(
    logits: Tensor,
    temperature: float | Tensor = 0.05,
    iterations: int = 3,
    *,
    separate: int | None = None,
    heads: list[int] | None = None,
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """The potentials of Sinkhorn's balanced assignment: ``softmax((logits + potential) / temperature)`` are its rows.

    What SwAV, DINOv2, DINOv3 and lightly compute as a matrix of assignments (Caron et al. 2020, section 3) is here one number of
    each prototype, to be given to ``soft_cross_entropy(potential=)``. Logits may be of any size: no exponential overflows or
    vanishes.

    Args:
        logits: (..., K), at least 2-D: rows over the K prototypes that no temperature has divided; float32, bfloat16, float16 or
            float64. It is a constant.
        temperature: Above 0 (epsilon in SwAV and lightly, the teacher's temperature in DINOv2); a number or a one-element tensor on
            the device of ``logits``.
        iterations: How often prototypes and rows are normalised, from 1 to 65,536.
        separate: A dimension of ``logits`` each index of which is balanced by itself, such as the positions of CAPI or crops. None:
            all rows are one set.
        heads: Sizes of consecutive segments of the K columns, each balanced by itself (nested prototypes). None: one head.
        group: A process group, or ``fastssl.distributed.Ranks``: the rows of all its processes are balanced together, and every
            process gets the same potentials. Their numbers of rows may differ, and 0 is one of them. None: this process's rows.

    Returns:
        The potentials, float32 (float64 for float64 logits): (K,), or with ``separate`` a shape that broadcasts to ``logits``. The
        largest of a head is 0. A prototype whose logits are all -inf has 0. Where the potentials of a head are up to S apart, their
        rounding to float32 moves an assignment by at most 3e-8 S / temperature: less than 1e-5 up to S / temperature = 300.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: ``logits`` requires a gradient, or the call is inside a ``torch.func`` transform or forward-mode
            differentiation.
        RanksError: The processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> import torch
        >>> from fastssl.functional import sinkhorn
        >>> logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.2], [0.6, 0.5]])
        >>> potential = sinkhorn(logits, 0.05, iterations=10)
        >>> ((logits + potential) / 0.05).softmax(1).sum(0).round(decimals=1)  # two rows for each of two prototypes
        tensor([2., 2.])
    """
    refuse_transforms(_OP, logits, temperature)
    check_dense(_OP, "logits", logits, "a tensor (..., K)")
    check_float_dtype(_OP, "logits", logits)
    if logits.dim() < 2 or 0 in logits.shape[1:]:
        raise ValueError(f"{_OP}: logits must have shape (..., K), at least 2-D and with K at least 1, got {tuple(logits.shape)}")
    check_constant(_OP, "logits", logits)
    check_temperature(_OP, "temperature", temperature, logits)
    iterations = check_whole(_OP, "iterations", iterations, 1, MOST_ITERATIONS + 1)
    inner, groups, shape = _layout(logits, separate)
    heads = check_heads(_OP, heads, "logits", logits.shape[-1])
    if separate is None:
        rows = logits.flatten(0, -2)  # of any shape in each process
    else:
        rows = logits if inner * groups < logits.shape[:-1].numel() else logits.movedim(0, -2)
    joined = join(_OP, group, rows.detach(), iterations=iterations, separate=separate, heads=heads)
    if joined is None and 0 in logits.shape:
        raise ValueError(f"{_OP}: logits must have at least one row, got shape {tuple(logits.shape)}")
    logits = dense_rows(logits.detach().reshape(-1, logits.shape[-1]))
    scale = on_device((temperature,), logits)
    return potentials([(logits, inner)], groups, scale, iterations, heads, joined).reshape(shape)


def potentials(
    parts: list[tuple[Tensor, int]], groups: int, scale: Tensor, iterations: int, heads: list[int], joined: Joined | None
) -> Tensor:
    """The potentials (G, K) of checked rows in one or more parts, each with its ``inner``: row m is of group (m // inner) % G."""
    starts = [sinkhorn_start(rows, scale, inner, groups) for rows, inner in parts]
    top, total = starts[0] if len(starts) == 1 else _of_parts(starts, scale)
    if joined is not None:
        top, total = _everywhere(top, total, scale, joined)
    wide, empty = scale.double(), total == 0  # prototypes whose logits are all -inf
    top = top.double()
    potential = (_largest(top, heads) - top - wide * total.double().log()).masked_fill(empty, 0.0)
    for _ in range(iterations - 1):
        used = potential.to(scale.dtype)  # what the next sums belong to
        each = [sinkhorn_step(rows, used, scale, heads, inner) for rows, inner in parts]
        sums = each[0] if len(each) == 1 else torch.stack(each).sum(0)
        if joined is not None:
            sums = sum_of_all(joined, sums)
        potential = used.double() - wide * (sums + empty).double().log()
    potential = potential - _largest(potential.masked_fill(empty, -torch.inf), heads)
    return potential.masked_fill(empty, 0.0).to(scale.dtype)
