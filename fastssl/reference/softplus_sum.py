"""Log-sum-exps over the negatives and logits of the positives -> their loss, in plain PyTorch.

total = w sum_i softplus(u_i),   u_i = lse_i - scale positive_(i mod P)          w = 1 / N for a mean, otherwise 1
"""

import torch
from torch import Tensor


def _logits(lse: Tensor, positive: Tensor, scale: float) -> Tensor:
    """u (N / P, P) in float64."""
    return lse.double().view(-1, len(positive)) - scale * positive.double()


def softplus_sum_fwd(lse: Tensor, positive: Tensor, scale: float, mean: bool) -> Tensor:
    """lse (N,), positive (P,) -> scalar in their dtype."""
    terms = torch.nn.functional.softplus(_logits(lse, positive, scale), threshold=40.0)
    return (terms.mean() if mean else terms.sum()).to(lse.dtype)


def softplus_sum_bwd(dtotal: Tensor, lse: Tensor, positive: Tensor, scale: float, mean: bool) -> tuple[Tensor, Tensor]:
    """dlse (N,) and dpositive (P,)."""
    weight = dtotal.double() / (len(lse) if mean else 1)
    dlse = weight * _logits(lse, positive, scale).sigmoid()
    return dlse.flatten().to(lse.dtype), (-scale * dlse.sum(0)).to(lse.dtype)
