"""A step of Adam on some rows of a table, in plain PyTorch. The equations stand in ``fastssl/ops/sparse_adam.py``."""

from torch import Tensor

from fastssl.checks import accumulator_dtype


def sparse_adam_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    values: Tensor,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """param, exp_avg, exp_avg_sq (V, D), rows (R,) without repetition, values (R, D)."""
    wide = accumulator_dtype(param)
    p, m, v = (t[rows].to(wide) for t in (param, exp_avg, exp_avg_sq))
    g = values.to(wide)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    exp_avg[rows] = m.to(exp_avg.dtype)
    exp_avg_sq[rows] = v.to(exp_avg_sq.dtype)
    param[rows] = (p - rate * m / (v.sqrt() + eps)).to(param.dtype)
