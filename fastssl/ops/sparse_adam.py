"""Contract of the op of SparseAdam: a step of Adam on the rows of a table that a sparse gradient holds, and on no other.

    m_r <- m_r + (1 - beta1) (g_r - m_r),    v_r <- v_r + (1 - beta2) (g_r^2 - v_r),    p_r <- p_r - rate m_r / (sqrt(v_r) + eps)
    rate = lr sqrt(1 - beta2^t) / (1 - beta1^t)

This is the arithmetic of ``torch.optim.SparseAdam``, where eps is added to a root that is not corrected for its bias; sums are in
float32 (float64 for float64). An element costs 28 bytes in float32 (read p, m, v, g, write p, m, v). torch's step gathers, sorts
and adds sparse tensors of the gradient's size, some fifteen passes; it sorts first the gradient itself, because autograd forgets on
the way that it is sorted.
"""

import torch
from torch import Tensor

from ._register import define_op

sparse_adam_ = define_op(
    "sparse_adam_",
    "(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor rows, Tensor values, float rate, float beta1, "
    "float beta2, float eps) -> ()",
    lambda *_: None,
    "sparse_adam",
)


def touched_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (R,) of a sparse gradient of a table, rising, and their values (R, D). One whose rows rise is not sorted again."""
    if not gradient.is_coalesced():
        rows = gradient._indices()[0]
        if bool((rows[1:] > rows[:-1]).all()):
            return rows, gradient._values()
        gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def step_rows(
    state: tuple[Tensor, Tensor, Tensor], gradient: Tensor, step: int, lr: float, betas: tuple[float, float], eps: float
) -> None:
    """Step number ``step``, from 1 on, of param, exp_avg and exp_avg_sq (V, D), with a sparse gradient of that shape."""
    rows, values = touched_rows(gradient)
    if rows.numel():
        beta1, beta2 = betas
        rate = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        if all(t.stride(1) == 1 and t.stride() == state[0].stride() for t in state):
            sparse_adam_(*state, rows, values.contiguous(), rate, beta1, beta2, eps)
        else:  # columns that do not lie side by side, or a view of a wider table: its moments lie in another way
            held = tuple(t[rows].contiguous() for t in state)
            sparse_adam_(*held, torch.arange(len(rows), device=rows.device), values.contiguous(), rate, beta1, beta2, eps)
            for t, part in zip(state, held, strict=True):
                t[rows] = part
        torch.autograd.graph.increment_version(state)
