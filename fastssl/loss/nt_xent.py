"""NT-Xent (SimCLR) and its decoupled form (DCL), on ``similarity_lse``.

With the 2B rows z of both views, s_ij = <z_i, z_j> / temperature and p(i) the other view of i's picture,

    NT-Xent_i = softplus(lse_i - s_i,p(i))        DCL_i = lse_i - s_i,p(i)        lse_i = log sum_{j not in {i, p(i)}} exp(s_ij)

softplus(lse - s_pos) is the cross-entropy of the positive among all other rows. The usual form, a log-sum-exp over all of them
minus s_pos, subtracts two large numbers; this one does not, so a loss of 1e-3 keeps its digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from fastssl.checks import NUMBERS, check_flag, check_number, check_scalar, check_views, is_whole
from fastssl.distributed import gather_rows_with_grad, world_size
from fastssl.ops.normalize import normalize_pair

from .moco import moco_loss
from .nt_xent_node import pair_loss
from .parts.arguments import enter, refuse_group, scalar
from .parts.dot_products import dot_rows
from .parts.ids import arange_ids
from .parts.local_rows import warn_local_rows
from .parts.reductions import check_reduction, lse_of, positive_loss, reduce_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _checked_pair(
    op: str,
    names: tuple[str, str],
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Both views after the checks, of one dtype."""
    z0, z1 = enter(op, z0, z1)
    check_views(op, names, z0, z1)
    check_scalar(op, "temperature", temperature, z0, zero=False)
    check_flag(op, "normalize", normalize)
    refuse_group(op, group)
    return z0, z1


def _pair_terms(
    op: str, z0: Tensor, z1: Tensor, temperature: float | Tensor, normalize: bool = True, gather: bool = False
) -> tuple[Tensor, Tensor, Tensor, float | Tensor]:
    """Of a checked pair: z (2B, D), view 0 first; lse (2B,) over the negatives of each row; dot (B,) of each pair; 1 / temperature.

    With ``gather`` the rows of all processes are columns too; every process must bring the same number of rows.
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
    group: ProcessGroup | None = None,
) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1), over both views' 2B rows without the 2B x 2B matrix.

    Equals ``F.cross_entropy(z @ z.T / temperature, positives)`` with ``z = normalize(cat([z0, z1]))`` and the diagonal at
    ``-inf``; lightly's ``NTXentLoss(temperature)(z0, z1)``.

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the losses (2B,), those of view 0 first.
        group: reserved for negatives from other processes, which are not there yet.

    Returns:
        The loss, float32 (float64 for float64 input), accumulated in that dtype; a scalar unless ``reduction="none"``. Memory
        O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature (0, NaN, infinite) or reduction.
        NotImplementedError: ``group`` was given.

    Examples:
        >>> z0, z1 = torch.randn(256, 128, requires_grad=True), torch.randn(256, 128)
        >>> loss = nt_xent(z0, z1, temperature=0.1)
        >>> loss.backward()
        >>> nt_xent(z0, z1, reduction="none").shape
        torch.Size([512])
    """
    op = "nt_xent"
    check_reduction(op, reduction)
    z0, z1 = _checked_pair(op, ("z0", "z1"), z0, z1, temperature, normalize, group)
    if normalize and reduction != "none":
        return _reduced(op, z0, z1, temperature, reduction)
    _, lse, dot, scale = _pair_terms(op, z0, z1, temperature, normalize)
    return positive_loss(op, lse, dot, scale, reduction)


def _reduced(op: str, z0: Tensor, z1: Tensor, temperature, reduction: str, gather: bool = False) -> Tensor:
    """NT-Xent of a checked pair, whose rows are normalised here: one node of the autograd graph where it can be.

    It can be where the temperature is a number and all rows are this process's.
    """
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
    group: ProcessGroup | None = None,
    weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent with the positive taken out of the denominator.

    ``DCL_i = log sum_{j not in {i, p(i)}} exp(s_ij) - w_i s_i,p(i)``, where s are the similarities of the 2B rows of both views
    over the temperature, p(i) is the other view of row i, and w_i is 1 unless there is a ``weight_fn``. Equals lightly's
    ``DCLLoss``.

    Args:
        z0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64. B is at least 2, because a single pair has
            no negatives.
        z1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.
        temperature: divides the similarities; a number or a one-element float tensor, not 0. A tensor may need a gradient.
        normalize: scale rows to unit length first (fused); otherwise rows are used as they are.
        reduction: "mean" or "sum" over the 2B rows, or "none" for the losses (2B,), those of view 0 first.
        group: reserved for negatives from other processes, which are not there yet.
        weight_fn: called as ``weight_fn(own, other)`` for each view, with the rows (B, D) of this view and of the other one as the
            loss sees them; returns the weights (B,) of the positives. None: 1.

    Returns:
        The loss, float32 (float64 for float64 input), a scalar unless ``reduction="none"``. Unlike NT-Xent it may be negative.
        Memory O(B D). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, temperature or reduction; one pair alone.
        NotImplementedError: ``group`` was given.

    Examples:
        >>> z0, z1 = torch.randn(8, 16), torch.randn(8, 16)
        >>> bool(dcl(z0, z1, 0.5) < nt_xent(z0, z1, 0.5))  # the denominator is smaller
        True
    """
    op = "dcl"
    check_reduction(op, reduction)
    z0, z1 = _checked_pair(op, ("z0", "z1"), z0, z1, temperature, normalize, group)
    if weight_fn is not None and not callable(weight_fn):
        raise TypeError(f"{op}: weight_fn must be a function or None, got {type(weight_fn).__name__}")
    if z0.shape[0] < 2:
        raise ValueError(f"{op}: z0 must have at least 2 rows, since one pair has no negatives, got shape {tuple(z0.shape)}")
    return _decoupled(*_pair_terms(op, z0, z1, temperature, normalize), weight_fn, reduction)


def _decoupled(z: Tensor, lse: Tensor, dot: Tensor, scale, weight_fn: Callable | None, reduction: str) -> Tensor:
    """DCL from the results of ``_pair_terms``."""
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
    if is_whole(memory_bank_size):
        shape: tuple[int, ...] = (cast(int, memory_bank_size),)
    elif isinstance(memory_bank_size, Sequence) and not isinstance(memory_bank_size, str):
        shape = tuple(memory_bank_size)
    else:
        raise TypeError(f"NTXentLoss: memory_bank_size must be K or (K, D), got {type(memory_bank_size).__name__}")
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
    positive in out1 and the bank's K rows, which are out1's of earlier steps. The loss sees the bank as it was before the call;
    then out1 is pushed, but only where ``out0.requires_grad`` (not under ``no_grad``). No logits (B, K) and no copy of the bank
    are made.

    Args:
        temperature: divides the similarities; a number, or a one-element tensor such as a learned ``nn.Parameter``. At least 1e-8
            in size.
        memory_bank_size: 0: no bank. (K, D): a bank of K rows of width D. K alone: the bank is made at the first batch, with its
            width and on its device. Rows beyond the bank's end are dropped and the next ones go to its start, as in lightly. The
            bank is float32.
        gather_distributed: in several processes, the negatives are the rows of all of them, and every process must bring the same
            number of rows. With a bank, the rows of all processes are pushed onto it, and their numbers may differ. Without
            effect in one process.
        persistent_bank: keep the bank in the state dict. lightly does not, so by default this loss does not either, and checkpoints
            go both ways. Loading takes a bank that the state dict has, and keeps the present one where it has none.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 32))
        >>> out0, out1 = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> criterion(out0, out1).backward()  # out1's rows are in the bank now
        >>> criterion.memory_bank.bank.shape
        torch.Size([4096, 32])
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
        """The mean loss over the 2B rows of both views; with a memory bank, over the B rows of ``out0``.

        Args:
            out0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64. Rows are normalised here.
            out1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: as ``nt_xent``, and rows that do not have the bank's width.
        """
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
        return cast(Tensor, loss)  # and no statistics, which were not asked for


class DCLLoss(nn.Module):
    """``dcl`` with the arguments of lightly's ``DCLLoss``. A single pair gives -inf, as there, where ``dcl`` refuses it.

    Args:
        temperature: divides the similarities; a number, or a one-element tensor such as a learned ``nn.Parameter``; not 0.
        weight_fn: ``weight_fn(own, other)`` of two views (B, D) gives the weights (B,) of the positives, as in ``dcl``. None: 1.
        gather_distributed: in several processes, the negatives are the rows of all of them, and every process must bring the same
            number of rows. Without effect in one process.

    Raises:
        ValueError: ``gather_distributed`` where torch was built without ``torch.distributed``.

    Examples:
        >>> criterion = DCLLoss(temperature=0.1)
        >>> criterion(torch.randn(8, 32), torch.randn(8, 32)).shape
        torch.Size([])
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
        """The mean loss over the 2B rows of both views.

        Args:
            out0: (B, D) embeddings of the first view; float32, bfloat16, float16 or float64. Rows are normalised here.
            out1: (B, D) embeddings of the second view, same dtype and device; row i is the positive of row i.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: wrong type, dtype, shape, device or temperature.
        """
        op = type(self).__name__
        out0, out1 = _checked_pair(op, ("out0", "out1"), out0, out1, self.temperature)
        terms = _pair_terms(op, out0, out1, self.temperature, gather=self.gather_distributed)
        return _decoupled(*terms, self.weight_fn, "mean")


class DCLWLoss(DCLLoss):
    """``DCLLoss`` whose positives have the weights of the von Mises-Fisher density, with the arguments of lightly's ``DCLWLoss``.

    ``w_i = 2 - B softmax_i(<own_i, other_i> / sigma)`` (Yeh et al. 2022, section 3): a pair that is still far apart weighs more. No
    gradient flows through the weights.

    Args:
        temperature: divides the similarities; a number or a one-element tensor, not 0.
        sigma: divides the similarities in the weights; not 0.
        gather_distributed: as in ``DCLLoss``.

    Raises:
        TypeError, ValueError: ``sigma`` is no finite number or 0; as ``DCLLoss``.

    Examples:
        >>> DCLWLoss(temperature=0.1, sigma=0.5)(torch.randn(8, 32), torch.randn(8, 32)).shape
        torch.Size([])
    """

    def __init__(self, temperature: float | Tensor = 0.1, sigma: float = 0.5, gather_distributed: bool = False):
        check_number("DCLWLoss", "sigma", sigma)
        if sigma == 0:
            raise ValueError("DCLWLoss: sigma must not be 0")
        super().__init__(temperature, partial(mises_fisher_weight, sigma=sigma), gather_distributed)
