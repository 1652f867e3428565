"""NT-Xent (SimCLR) and its decoupled form (DCL), on ``similarity_lse``.

With the 2B rows z of both views, s_ij = <z_i, z_j> / temperature and p(i) the other view of i's picture,

    NT-Xent_i = softplus(lse_i - s_i,p(i))        DCL_i = lse_i - s_i,p(i)        lse_i = log sum_{j not in {i, p(i)}} exp(s_ij)

softplus(lse - s_pos) is the cross-entropy of the positive among all other rows; unlike log-sum-exp over all of them minus
s_pos, it does not cancel, so a loss of 1e-3 keeps its digits.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fastssl.momentum.queue import MemoryBank
from fastssl.ops._checks import check_choice, check_scalar, check_views
from fastssl.ops.normalize import normalize_pair
from fastssl.ops.similarity import similarity_lse

from ._common import arange_ids, dot_rows, positive_loss, reduce_rows, refuse_group
from .moco import moco_loss


def _pair_terms(op: str, z0: Tensor, z1: Tensor, temperature, normalize: bool, group) -> tuple[Tensor, Tensor, Tensor, float]:
    """z (2B, D), view 0 first; lse (2B,) over the negatives of each row; dot (B,) of each pair; 1 / temperature."""
    check_views(op, ("z0", "z1"), z0, z1)
    check_scalar(op, "temperature", temperature, z0, zero=False)
    refuse_group(op, group)
    if normalize:
        z, dot = normalize_pair(z0, z1)
    else:
        z, dot = torch.cat([z0, z1]), dot_rows(z0, z1)
    pair = arange_ids(z0).repeat(2)
    scale = 1.0 / temperature
    return z, similarity_lse(z, z, scale=scale, x_id=pair), dot, scale


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group=None,
) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1), over both views' 2B rows without the 2B x 2B matrix.

    Equals ``F.cross_entropy(z @ z.T / temperature, positives)`` with ``z = normalize(cat([z0, z1]))`` and the diagonal at
    ``-inf``; lightly's ``NTXentLoss(temperature)(z0, z1)``.

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: number or one-element float tensor, not 0; a tensor may need a gradient.
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the 2B losses, view 0 first.
        group: reserved for negatives from other processes; not there yet.

    Returns:
        The loss, float32 (float64 for float64 input). Accumulates in that dtype. Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature (0, NaN, infinite) or reduction.
    """
    check_choice("nt_xent", "reduction", reduction, ("mean", "sum", "none"))
    _, lse, dot, scale = _pair_terms("nt_xent", z0, z1, temperature, normalize, group)
    return positive_loss(lse, dot, scale, reduction)


def dcl(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group=None,
    weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent with the positive taken out of the denominator.

    ``DCL_i = lse_{j not in {i, p(i)}} s_ij - w_i s_i,p(i)``, w = 1 unless ``weight_fn(own view (B, D), other view (B, D))``
    gives (B,) weights, as in lightly. Other arguments, result and errors as ``nt_xent``; B must be at least 2, since one
    pair has no negatives.
    """
    check_choice("dcl", "reduction", reduction, ("mean", "sum", "none"))
    check_views("dcl", ("z0", "z1"), z0, z1)
    if z0.shape[0] < 2:
        raise ValueError(f"dcl: z0 must have at least 2 rows, since one pair has no negatives, got shape {tuple(z0.shape)}")
    z, lse, dot, scale = _pair_terms("dcl", z0, z1, temperature, normalize, group)
    positive = scale * dot
    if weight_fn is not None:
        a, b = z.chunk(2)
        positive = positive * torch.stack([weight_fn(a, b), weight_fn(b, a)])
    return reduce_rows(lse.view(2, -1) - positive, reduction)


def mises_fisher_weight(own: Tensor, other: Tensor, sigma: float = 0.5) -> Tensor:
    """w_i = 2 - B softmax_i(<own_i, other_i> / sigma) (Yeh et al. 2022, section 3), a constant; own, other (B, D) -> (B,)."""
    dot = (own.detach().float() * other.detach().float()).sum(1)
    return 2.0 - own.shape[0] * torch.softmax(dot / sigma, dim=0)


def _refuse_gather(op: str, gather_distributed: bool, bank: bool = False) -> None:
    """Over several processes only what a memory bank takes in can be gathered."""
    dist = torch.distributed
    if gather_distributed and not dist.is_available():
        raise ValueError(f"{op}: gather_distributed=True needs torch.distributed, which this torch build lacks")
    if gather_distributed and not bank and dist.is_initialized() and dist.get_world_size() > 1:
        raise NotImplementedError(f"{op}: gather_distributed=True over several processes is not there yet")


def _bank_shape(memory_bank_size: int | Sequence[int]) -> tuple[int, int | None]:
    """(rows K, width D); D is None where only K was given."""
    shape = (memory_bank_size,) if isinstance(memory_bank_size, int) else tuple(memory_bank_size)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    if not whole or len(shape) not in (1, 2) or shape[0] < 0 or shape[-1] < min(shape[0], 1):
        raise ValueError(f"NTXentLoss: memory_bank_size must be 0, K or (K, D) with K and D of at least 1, got {memory_bank_size}")
    return shape[0], shape[1] if len(shape) == 2 and shape[0] else None


class NTXentLoss(nn.Module):
    """``nt_xent`` with the arguments of lightly's ``NTXentLoss``: ``NTXentLoss(temperature=0.5)(out0, out1)``.

    With a memory bank it is MoCo's contrast of one direction (He et al. 2020, eq. 1), ``moco_loss`` on unit rows: out0 against its
    positive in out1 and the bank's K rows, which are out1's of earlier steps. The loss sees the bank as it was before; then out1
    is pushed, where ``out0.requires_grad`` (not under ``no_grad``). No (B, K) logits and no copy of the bank exist.

    Args:
        temperature: number or one-element tensor (a learned ``nn.Parameter``); ``|temperature| >= 1e-8``.
        memory_bank_size: 0, no bank; (K, D); or K alone: the bank is then made at the first batch, with its width and device. Rows
            beyond the bank's end are dropped and the next ones go to its start, as in lightly. It is in the state dict, float32.
        gather_distributed: push the rows of all processes onto the bank. Without effect in one process; without a bank, negatives
            from several processes are not there yet.
    """

    def __init__(
        self, temperature: float | Tensor = 0.5, memory_bank_size: int | Sequence[int] = 0, gather_distributed: bool = False
    ):

        super().__init__()
        if not isinstance(temperature, Tensor) and abs(temperature) < 1e-8:
            raise ValueError(f"NTXentLoss: temperature must be at least 1e-8 in size, got {temperature}")
        size, dim = _bank_shape(memory_bank_size)
        _refuse_gather("NTXentLoss", gather_distributed, bank=size > 0)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank = MemoryBank(size, dim, overflow="truncate", gather_distributed=gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1 (B, D), normalised here -> mean loss over the 2B rows; with a memory bank over the B rows of out0."""
        memory = self.memory_bank
        if len(memory.bank) == 0:
            _refuse_gather("NTXentLoss", self.gather_distributed)
            return nt_xent(out0, out1, self.temperature)
        check_views("NTXentLoss", ("out0", "out1"), out0, out1)
        if memory.bank.device != out0.device:  # losses are often built and never moved
            memory.to(out0.device)
        z0, z1 = normalize_pair(out0, out1)[0].chunk(2)
        loss = moco_loss(z0, z1, memory.read(z1), self.temperature, layout="kd")
        if out0.requires_grad and torch.is_grad_enabled():
            memory.push(z1)
        return loss


class DCLLoss(nn.Module):
    """``dcl`` with the arguments of lightly's ``DCLLoss``; ``weight_fn`` as in ``dcl``."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ):
        super().__init__()
        _refuse_gather("DCLLoss", gather_distributed)
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1 (B, D), normalised here -> mean loss over the 2B rows."""
        _refuse_gather("DCLLoss", self.gather_distributed)
        return dcl(out0, out1, self.temperature, weight_fn=self.weight_fn)


class DCLWLoss(DCLLoss):
    """``DCLLoss`` weighted by ``mises_fisher_weight``, with the arguments of lightly's ``DCLWLoss``."""

    def __init__(self, temperature: float | Tensor = 0.1, sigma: float = 0.5, gather_distributed: bool = False):
        super().__init__(temperature, partial(mises_fisher_weight, sigma=sigma), gather_distributed)
