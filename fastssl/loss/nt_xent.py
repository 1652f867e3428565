"""NT-Xent (SimCLR) and its decoupled form (DCL), on ``similarity_lse``.

With the 2B rows z of both views, s_ij = <z_i, z_j> / temperature and p(i) the other view of i's picture,

    NT-Xent_i = softplus(lse_i - s_i,p(i))        DCL_i = lse_i - s_i,p(i)        lse_i = log sum_{j not in {i, p(i)}} exp(s_ij)

softplus(lse - s_pos) is the cross-entropy of the positive among all other rows; unlike log-sum-exp over all of them minus
s_pos, it does not cancel, so a loss of 1e-3 keeps its digits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fastssl.checks import NUMBERS, check_choice, check_flag, check_number, check_scalar, check_views, is_whole
from fastssl.distributed import gather_rows_with_grad, world_size
from fastssl.ops.normalize import normalize_pair

from .moco import moco_loss
from .nt_xent_node import pair_loss
from .parts.arguments import enter, refuse_group, scalar
from .parts.dot_products import dot_rows
from .parts.ids import arange_ids
from .parts.local_rows import warn_local_rows
from .parts.reductions import lse_of, positive_loss, reduce_rows


def _checked_pair(
    op: str, names: tuple[str, str], z0: Tensor, z1: Tensor, temperature, normalize: bool = True, group=None
) -> tuple[Tensor, Tensor]:
    """Two views, checked, of one dtype."""
    z0, z1 = enter(op, z0, z1)
    check_views(op, names, z0, z1)
    check_scalar(op, "temperature", temperature, z0, zero=False)
    check_flag(op, "normalize", normalize)
    refuse_group(op, group)
    return z0, z1


def _pair_terms(
    op: str, z0: Tensor, z1: Tensor, temperature, normalize: bool = True, gather: bool = False
) -> tuple[Tensor, Tensor, Tensor, float | Tensor]:
    """Of a checked pair: z (2B, D), view 0 first; lse (2B,) over the negatives of each row; dot (B,) of each pair; 1 / temperature.

    With ``gather`` the rows of all processes, which must bring as many, are columns too.
    """
    if not gather:
        warn_local_rows(op)
    if normalize:
        z, dot = normalize_pair(z0, z1, op=op)
    else:
        z, dot = torch.cat([z0, z1]), dot_rows(z0, z1)
    scale = 1.0 / scalar(temperature, z0)
    if gather and world_size() > 1:
        pairs, first = gather_rows_with_grad(torch.cat(z.chunk(2), 1))
        own, columns = arange_ids(z0, first).repeat(2), arange_ids(pairs).repeat_interleave(2)
        return z, lse_of(op, z, pairs.view(-1, z.shape[1]), scale=scale, x_id=own, y_id=columns), dot, scale
    pair = arange_ids(z0).repeat(2)
    return z, lse_of(op, z, z, scale=scale, x_id=pair), dot, scale


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
    op = "nt_xent"
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    z0, z1 = _checked_pair(op, ("z0", "z1"), z0, z1, temperature, normalize, group)
    if normalize and reduction != "none":
        return _reduced(op, z0, z1, temperature, reduction)
    _, lse, dot, scale = _pair_terms(op, z0, z1, temperature, normalize)
    return positive_loss(op, lse, dot, scale, reduction)


def _reduced(op: str, z0: Tensor, z1: Tensor, temperature, reduction: str, gather: bool = False) -> Tensor:
    """NT-Xent of a checked pair whose rows are normalised: one node of the autograd graph where the temperature is a number and all
    rows are this process's."""
    if isinstance(temperature, Tensor) or torch.compiler.is_compiling() or (gather and world_size() > 1):
        _, lse, dot, scale = _pair_terms(op, z0, z1, temperature, gather=gather)
        return positive_loss(op, lse, dot, scale, reduction)
    if not gather:
        warn_local_rows(op)
    return pair_loss(op, z0, z1, 1.0 / float(temperature), reduction == "mean")


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
    op = "dcl"
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    z0, z1 = _checked_pair(op, ("z0", "z1"), z0, z1, temperature, normalize, group)
    if weight_fn is not None and not callable(weight_fn):
        raise TypeError(f"{op}: weight_fn must be a function or None, got {type(weight_fn).__name__}")
    if z0.shape[0] < 2:
        raise ValueError(f"{op}: z0 must have at least 2 rows, since one pair has no negatives, got shape {tuple(z0.shape)}")
    return _decoupled(*_pair_terms(op, z0, z1, temperature, normalize), weight_fn, reduction)


def _decoupled(z: Tensor, lse: Tensor, dot: Tensor, scale, weight_fn: Callable | None, reduction: str) -> Tensor:
    """DCL from ``_pair_terms``."""
    positive = scale * dot
    if weight_fn is not None:
        a, b = z.chunk(2)
        positive = positive * torch.stack([weight_fn(a, b), weight_fn(b, a)])
    return reduce_rows(lse.view(2, -1) - positive, reduction)


def mises_fisher_weight(own: Tensor, other: Tensor, sigma: float = 0.5) -> Tensor:
    """w_i = 2 - B softmax_i(<own_i, other_i> / sigma) (Yeh et al. 2022, section 3), a constant; own, other (B, D) -> (B,)."""
    return 2.0 - own.shape[0] * torch.softmax(dot_rows(own.detach(), other.detach()) / sigma, dim=0)


def _check_gather(op: str, gather_distributed: bool) -> None:
    if gather_distributed and not torch.distributed.is_available():
        raise ValueError(f"{op}: gather_distributed=True needs torch.distributed, which this torch build lacks")


def _bank_shape(memory_bank_size: int | Sequence[int]) -> tuple[int, int | None]:
    """(rows K, width D); D is None where only K was given."""
    if not (is_whole(memory_bank_size) or (isinstance(memory_bank_size, Sequence) and not isinstance(memory_bank_size, str))):
        raise TypeError(f"NTXentLoss: memory_bank_size must be K or (K, D), got {type(memory_bank_size).__name__}")
    shape = (memory_bank_size,) if is_whole(memory_bank_size) else tuple(memory_bank_size)
    if not all(map(is_whole, shape)) or len(shape) not in (1, 2) or shape[0] < 0 or shape[-1] < min(shape[0], 1):
        raise ValueError(f"NTXentLoss: memory_bank_size must be 0, K or (K, D) with K and D of at least 1, got {memory_bank_size}")
    return shape[0], shape[1] if len(shape) == 2 and shape[0] else None


class NegativeBank(Protocol):
    """What ``NTXentLoss`` asks of its memory bank: ``fastssl.momentum.MemoryBank`` can do it."""

    bank: Tensor  # (K, D) rows of earlier steps; K is 0 where the loss has no bank

    def read(self, output: Tensor) -> Tensor:
        """The bank (K, D) without gradient, for rows ``output`` (N, D)."""

    def push(self, output: Tensor) -> None:
        """Writes rows ``output`` (N, D) over the oldest ones."""

    def to(self, device: torch.device) -> object:
        """Moves the bank."""


class NTXentLoss(nn.Module):
    """``nt_xent`` with the arguments of lightly's ``NTXentLoss``: ``NTXentLoss(temperature=0.5)(out0, out1)``.

    With a memory bank it is MoCo's contrast of one direction (He et al. 2020, eq. 1), ``moco_loss`` on unit rows: out0 against its
    positive in out1 and the bank's K rows, which are out1's of earlier steps. The loss sees the bank as it was before; then out1
    is pushed, where ``out0.requires_grad`` (not under ``no_grad``). No (B, K) logits and no copy of the bank exist.

    Args:
        temperature: number or one-element tensor (a learned ``nn.Parameter``); ``|temperature| >= 1e-8``.
        memory_bank_size: 0, no bank; (K, D); or K alone: the bank is then made at the first batch, with its width and device. Rows
            beyond the bank's end are dropped and the next ones go to its start, as in lightly. It is float32.
        gather_distributed: in several processes, the negatives are the rows of all of them, which must bring as many; with a bank,
            the rows of all are pushed onto it, and their number may differ. Without effect in one process.
        persistent_bank: keep the bank in the state dict. lightly's is not there, so by default neither is this one, and checkpoints
            go both ways. Loading takes a bank that the state dict has, and keeps the present one where it has none.
    """

    #: Makes the bank of K rows of width D (None: as wide as the first batch) from (K, D, gather_distributed=, persistent=). Losses
    #: import no state: ``fastssl/__init__.py``, which imports both, puts ``fastssl.momentum``'s bank here.
    make_bank: ClassVar[Callable[..., NegativeBank]]

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        persistent_bank: bool = False,
    ):
        super().__init__()
        if isinstance(temperature, bool) or not isinstance(temperature, (*NUMBERS, Tensor)):
            raise TypeError(f"NTXentLoss: temperature must be a number or a one-element tensor, got {type(temperature).__name__}")
        if not isinstance(temperature, Tensor) and abs(temperature) < 1e-8:
            raise ValueError(f"NTXentLoss: temperature must be at least 1e-8 in size, got {temperature}")
        size, dim = _bank_shape(memory_bank_size)
        _check_gather("NTXentLoss", gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        gather = gather_distributed and size > 0
        self.memory_bank = self.make_bank(size, dim, gather_distributed=gather, persistent=persistent_bank)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1 (B, D), normalised here -> mean loss over the 2B rows; with a memory bank over the B rows of out0."""
        memory = self.memory_bank
        if len(memory.bank) == 0:
            out0, out1 = _checked_pair("NTXentLoss", ("out0", "out1"), out0, out1, self.temperature)
            return _reduced("NTXentLoss", out0, out1, self.temperature, "mean", self.gather_distributed)
        out0, out1 = enter("NTXentLoss", out0, out1)
        check_views("NTXentLoss", ("out0", "out1"), out0, out1)
        if memory.bank.device != out0.device:  # losses are often built and never moved
            memory.to(out0.device)
        z0, z1 = normalize_pair(out0, out1, op="NTXentLoss")[0].chunk(2)
        loss = moco_loss(z0, z1, memory.read(z1), self.temperature, layout="kd")
        if out0.requires_grad and torch.is_grad_enabled():
            memory.push(z1)
        return loss


class DCLLoss(nn.Module):
    """``dcl`` with the arguments of lightly's ``DCLLoss``; ``weight_fn`` as in ``dcl``. One pair alone gives -inf, as there.

    ``gather_distributed``: in several processes, the negatives are the rows of all of them, which must bring as many.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ):
        super().__init__()
        _check_gather("DCLLoss", gather_distributed)
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1 (B, D), normalised here -> mean loss over the 2B rows."""
        op = type(self).__name__
        out0, out1 = _checked_pair(op, ("out0", "out1"), out0, out1, self.temperature)
        terms = _pair_terms(op, out0, out1, self.temperature, gather=self.gather_distributed)
        return _decoupled(*terms, self.weight_fn, "mean")


class DCLWLoss(DCLLoss):
    """``DCLLoss`` weighted by ``mises_fisher_weight``, with the arguments of lightly's ``DCLWLoss``."""

    def __init__(self, temperature: float | Tensor = 0.1, sigma: float = 0.5, gather_distributed: bool = False):
        check_number("DCLWLoss", "sigma", sigma)
        if sigma == 0:
            raise ValueError("DCLWLoss: sigma must not be 0")
        super().__init__(temperature, partial(mises_fisher_weight, sigma=sigma), gather_distributed)
