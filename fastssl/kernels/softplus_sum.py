"""softplus_sum in Triton: the loss of N rows in one launch, its gradients in another.

    total = w sum_i softplus(u_i),   u_i = lse_i - scale positive_(i mod P)          w = 1 / N for a mean, otherwise 1
    dlse_i = g w sigmoid(u_i),       dpositive_j = -scale sum_(i mod P = j) dlse_i

With e = exp(-|u|): softplus(u) = max(u, 0) + log1p(e), sigmoid(u) = (1 if u > 0 else e) / (1 + e). Bytes: 4 (N + P) read and, by
the backward, written. The forward is one program: 65,536 rows are 512 KB.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .host.device import on_device
from .host.launch import launch
from .host.tensors import new
from .sigmoid_pair_terms import log1p_unit, sigmoid_terms


@triton.jit(do_not_specialize=["N", "P"])
def softplus_sum_fwd_kernel(lse_ptr, positive_ptr, total_ptr, N, P, scale, weight, BLOCK: tl.constexpr):
    """lse (N,), positive (P,) -> total (). grid (1,)"""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, N, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = rows < N
        lse = tl.load(lse_ptr + rows, mask=inside, other=float("-inf"))  # (BLOCK,)
        u = lse - scale * tl.load(positive_ptr + rows % P, mask=inside, other=0.0)
        e, _ = sigmoid_terms(u)
        total += (tl.maximum(u, 0.0) + log1p_unit(e)).to(tl.float64)
    tl.store(total_ptr, (tl.sum(total, 0) * weight).to(tl.float32))


@triton.jit(do_not_specialize=["N", "P"])
def softplus_sum_bwd_kernel(
    dtotal_ptr, lse_ptr, positive_ptr, dlse_ptr, dpositive_ptr, N, P, scale, weight, BLOCK: tl.constexpr
):  # fmt: skip
    """dlse (N,), dpositive (P,). grid (P / BLOCK,)"""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < P
    positive = scale * tl.load(positive_ptr + columns, mask=inside, other=0.0)  # (BLOCK,)
    share = tl.load(dtotal_ptr).to(tl.float32) * weight
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, N, P):
        u = tl.load(lse_ptr + first + columns, mask=inside, other=0.0) - positive
        _, p = sigmoid_terms(u)
        dlse = share * p
        tl.store(dlse_ptr + first + columns, dlse, mask=inside)
        total += dlse.to(tl.float64)
    tl.store(dpositive_ptr + columns, (total * -scale).to(tl.float32), mask=inside)


def _weight(lse: Tensor, mean: bool) -> float:
    return 1.0 / len(lse) if mean else 1.0


def softplus_sum_fwd(lse: Tensor, positive: Tensor, scale: float, mean: bool) -> Tensor:
    """lse (N,), positive (P,) -> scalar, float32."""
    (total,) = new(lse, torch.float32, ())
    with on_device(lse):
        launch(
            softplus_sum_fwd_kernel, (1,), lse.contiguous(), positive.contiguous(), total, len(lse), len(positive), scale,
            _weight(lse, mean), BLOCK=4096, num_warps=16,
        )  # fmt: skip
    return total


def softplus_sum_bwd(dtotal: Tensor, lse: Tensor, positive: Tensor, scale: float, mean: bool) -> tuple[Tensor, Tensor]:
    """dlse (N,) and dpositive (P,), float32."""
    lse, positive = lse.contiguous(), positive.contiguous()
    dlse, dpositive = new(lse, torch.float32, (len(lse),), (len(positive),))
    with on_device(lse):
        launch(
            softplus_sum_bwd_kernel, (triton.cdiv(len(positive), 512),), dtotal, lse, positive, dlse, dpositive, len(lse),
            len(positive), scale, _weight(lse, mean), BLOCK=512,
        )  # fmt: skip
    return dlse, dpositive
