"""Cross-entropy against a teacher's softmax and its gradient in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype


class TargetCall(NamedTuple):
    """The arguments that the ops have in common, in the order of their schemas."""

    student: Tensor  # (N, K), N = S batch
    teacher: Tensor  # (M, K), M = T batch
    bias: Tensor | None  # (G, K)
    weight: Tensor | None  # (N,)
    temperatures: Tensor  # (2,): the student's and the teacher's
    heads: list[int]
    batch: int
    inner: int
    skip_diagonal: bool
    probabilities: bool


def biased(x: Tensor, bias: Tensor | None, inner: int) -> tuple[Tensor, Tensor | float]:
    """x (M, K) plus the bias (G, K) of each row, as the rounded sum and what the rounding left over (Knuth's two-sum).

    At logits of 100 the rounding of the sum is 4e-6, and 1e-4 after a division by a temperature of 0.04.
    """
    if bias is None:
        return x, 0.0
    b = bias.to(x.dtype)[torch.arange(x.shape[0], device=x.device) // inner % bias.shape[0]]
    total = x + b
    of_b = total - x
    rest = (x - (total - of_b)) + (b - of_b)
    return total, torch.where(rest.isfinite(), rest, 0.0)


def exponents(x: Tensor, temperature: Tensor, bias: Tensor | None = None, inner: int = 1) -> Tensor:
    """(x + bias) / temperature less its largest entry in each row; the maximum is subtracted before the division."""
    total, rest = biased(x, bias, inner)
    return (total - total.amax(1, keepdim=True) + rest) / temperature


def targets(call: TargetCall, head: slice, dtype: torch.dtype) -> Tensor:
    """The probabilities (T, B, k) of one head in the teacher's rows."""
    x = call.teacher[:, head].to(dtype)
    if not call.probabilities:
        bias = None if call.bias is None else call.bias[:, head]
        x = exponents(x, call.temperatures[1].to(dtype), bias, call.inner).softmax(1)
    return x.reshape(-1, call.batch, x.shape[1])


def soft_cross_entropy_fwd(*arguments) -> tuple[Tensor, Tensor]:
    """Of a ``TargetCall`` and whether the gradient is wanted: loss (N,), and dstudent (N, K) for upstream 1, or (0,)."""
    call, gradient = TargetCall(*arguments[:-1]), arguments[-1]
    dtype = accumulator_dtype(call.student)
    temperature = call.temperatures[0].to(dtype)
    weight = None if call.weight is None else call.weight.to(dtype)
    loss, parts, start = call.student.new_zeros(len(call.student), dtype=dtype), [], 0
    for size in call.heads:
        head = slice(start, start + size)
        start += size
        q = targets(call, head, dtype)
        total = q.sum(0).expand(len(call.student) // call.batch, -1, -1)
        if call.skip_diagonal:
            own = min(len(q), len(total))
            others = torch.stack([q[torch.arange(len(q), device=q.device) != t].sum(0) for t in range(own)])
            total = torch.cat([others, total[own:]])
        z = exponents(call.student[:, head].to(dtype), temperature)
        log_sum = z.logsumexp(1, keepdim=True)
        target = total.reshape(z.shape)
        loss = loss + (target * (log_sum - z)).sum(1)
        if gradient:
            slope = ((z - log_sum).exp() * target.sum(1, keepdim=True) - target) / temperature
            parts.append(slope if weight is None else torch.where(weight[:, None] == 0, 0.0, slope * weight[:, None]))
    if weight is not None:
        loss = torch.where(weight == 0, 0.0, loss * weight)
    return loss, torch.cat(parts, 1).to(call.student.dtype) if gradient else loss.new_empty(0, dtype=call.student.dtype)


def soft_cross_entropy_in_place(student: Tensor, *arguments) -> Tensor:
    """Loss (N,); the gradient is written over the student's logits."""
    loss, gradient = soft_cross_entropy_fwd(student, *arguments, True)
    student.copy_(gradient)
    return loss


def soft_cross_entropy_scale(dstudent: Tensor, upstream: Tensor) -> None:
    """The rows of dstudent (N, K) times upstream, () or (N,), in place."""
    dstudent.copy_(dstudent.to(upstream.dtype) * upstream.reshape(-1, 1))
