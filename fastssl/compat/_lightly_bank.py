"""The memory banks of lightly 1.6 (``lightly.models.modules``); ``compat/lightly.py`` exports them."""

import warnings
from collections.abc import Sequence

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import as_python, check_matrix
from fastssl.distributed import gather_rows
from fastssl.loss.variants import nearest_neighbor
from fastssl.ops.queue import queue_push_


class MemoryBankModule(nn.Module):
    """Bank of older embeddings (``lightly.models.modules.MemoryBankModule``), to be called or subclassed.

    Args:
        size: (K, D); 0 or (0, D): no bank. lightly up to 1.5 also takes K without D (1.6 refuses it), and so does this class: it
            makes the bank at the first batch, with the width and on the device of that batch. A UserWarning says so, because DDP
            makes only those buffers equal that exist when it is built.
        gather_distributed: push the embeddings of all ranks. Every rank must bring as many.
        feature_dim_first: the bank is returned as (D, K) instead of (K, D).

    Buffers, absent from the state dict as in lightly: ``bank`` (K, D) float32, random unit rows at the start, and ``bank_ptr`` (1,)
    int64. A batch that reaches the end of the bank is cut off there and the pointer returns to 0.

    Examples:
        >>> bank = MemoryBankModule(size=(32, 8))
        >>> output, negatives = bank(torch.randn(4, 8), update=True)
        >>> negatives.shape, bank.bank_ptr.item()
        (torch.Size([8, 32]), 4)
    """

    def __init__(self, size: int | Sequence[int] = 65536, gather_distributed: bool = False, feature_dim_first: bool = True):
        super().__init__()
        self.size = _bank_size(type(self).__name__, size)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.bank: Tensor
        self.bank_ptr: Tensor
        self.register_buffer("bank", torch.empty(self.size), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)
        if len(self.size) == 2:
            self._init_memory_bank(self.size)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor | None]:
        """output (N, D) -> output and a copy of the bank from before the update, (D, K) or (K, D); None without a bank.

        ``update`` pushes ``output``. ``labels`` have no effect, as in lightly. The copy is for losses that keep their negatives for
        the backward; ``fastssl.functional.moco_loss`` and ``NTXentLoss`` keep none and take ``self.bank`` itself.
        """
        if self.size[0] == 0:
            return output, None
        self._make_for(output)
        bank = self.bank.clone()
        if update:
            self._dequeue_and_enqueue(output)
        return output, bank.t() if self.feature_dim_first else bank

    def _make_for(self, output: Tensor) -> None:
        if self.bank.dim() == 1:
            check_matrix(type(self).__name__, "output", output, "N, D")
            self.bank, self.bank_ptr = self.bank.to(output.device), self.bank_ptr.to(output.device)
            self._init_memory_bank((*self.size, output.shape[1]))

    @torch.no_grad()
    def _init_memory_bank(self, size: tuple[int, ...]) -> None:
        self.bank = F.normalize(torch.randn(size).type_as(self.bank), dim=-1)
        self.bank_ptr = torch.zeros_like(self.bank_ptr)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, batch: Tensor) -> None:
        """batch (N, D), any N of at least 1, brought to the dtype of the bank."""
        check_matrix(type(self).__name__, "output", batch, "N, D")
        self._make_for(batch)
        if self.gather_distributed:
            batch = gather_rows(batch, even=True)
        queue_push_(self.bank, self.bank_ptr, batch, layout="kd", overflow="truncate")


class NNMemoryBankModule(MemoryBankModule):
    """Nearest neighbours from a bank (``lightly.models.modules.NNMemoryBankModule``; NNCLR, Dwibedi et al. 2021, eq. 1).

    Args:
        size: (K, D), or K as in lightly up to 1.5, with K of at least 1. A bank of size 0 refuses to be called, as in lightly.

    Examples:
        >>> bank = NNMemoryBankModule(size=(32, 8))
        >>> neighbours = bank(torch.randn(4, 8), update=True)
        >>> neighbours.shape, bank.bank_ptr.item()
        (torch.Size([4, 8]), 4)
    """

    def __init__(self, size: int | Sequence[int] = 2**16):
        super().__init__(size)

    def forward(self, output: Tensor, update: bool = False) -> Tensor:  # type: ignore[override]  # as in lightly
        """output (N, D) -> (N, D) float32: of each row the row of the bank with the highest cosine similarity, the first of equals.

        ``update`` pushes ``output`` after the look-up. No gradient, no N x K similarities at once.
        """
        check_matrix("NNMemoryBankModule", "output", output, "N, D")
        if self.size[0] == 0:
            raise ValueError(
                f"NNMemoryBankModule: size must be (K, D) with at least one row to look neighbours up, got {self.size}"
            )
        self._make_for(output)
        query = F.normalize(output.detach().to(self.bank.dtype), dim=1)
        found = self.bank[nearest_neighbor(query, F.normalize(self.bank, dim=1))]
        if update:
            self._dequeue_and_enqueue(output)
        return found


def _bank_size(op: str, size: int | Sequence[int]) -> tuple[int, ...]:
    """The size as a tuple: (K, D), (K,) or (0,). Raises ValueError for any other size."""
    alone = isinstance(size, (int, numpy.integer))
    entries = (as_python(size),) if isinstance(size, (int, numpy.integer)) else tuple(map(as_python, size))
    if any(entry < 0 for entry in entries):
        raise ValueError(f"{op}: size must not be negative, got {size}")
    if alone and entries[0] > 0:
        message = f"{op}: size={size} leaves the width to the first batch; give ({size}, D) to train in several processes"
        warnings.warn(message, UserWarning, stacklevel=4)
    if not alone and entries != (0,) and len(entries) != 2:
        raise ValueError(f"{op}: size must be (K, D), K alone, or 0 for no bank, got {size}")
    return entries
