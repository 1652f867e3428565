"""NT-Xent and DCL as modules with lightly's arguments, and a memory bank of earlier rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from fastssl.checks import NUMBERS, check_number, check_views, is_whole
from fastssl.distributed.ranks import Joined, Ranks
from fastssl.ops.normalize import normalize_pair

from .moco import moco_loss
from .nt_xent import checked_pair, decoupled, of_pair, pair_terms
from .parts.arguments import enter, together
from .parts.dot_products import dot_rows
from .parts.one_call import nt_xent_in_one_call


def _joined(op: str, gather_distributed: bool, out0: Tensor, temperature) -> Joined | None:
    """All processes where rows are gathered; otherwise None, with the warning that rows are local."""
    group = Ranks() if gather_distributed else None
    return together(op, group, out0, temperature=temperature, grad=out0.requires_grad)


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
        gather_distributed: in several processes, the negatives are the rows of all of them, as ``nt_xent(group=Ranks())``. With a
            bank, the rows of all processes are pushed onto it. Without effect in one process.
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
            in_one_call = None if self.gather_distributed else nt_xent_in_one_call("NTXentLoss", out0, out1, self.temperature, True)
            if in_one_call is not None:
                return in_one_call
            out0, out1 = checked_pair("NTXentLoss", ("out0", "out1"), out0, out1, self.temperature)
            joined = _joined("NTXentLoss", self.gather_distributed, out0, self.temperature)
            return of_pair("NTXentLoss", out0, out1, self.temperature, "mean", joined)
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
        gather_distributed: in several processes, the negatives are the rows of all of them, as ``dcl(group=Ranks())``. Without
            effect in one process.

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
        out0, out1 = checked_pair(op, ("out0", "out1"), out0, out1, self.temperature)
        joined = _joined(op, self.gather_distributed, out0, self.temperature)
        terms = pair_terms(op, out0, out1, self.temperature, True, joined)
        return decoupled(*terms, self.weight_fn, "mean", joined)


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
