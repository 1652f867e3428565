"""Drop-ins for lightly 1.6: memory banks, momentum update, NT-Xent.

lightly 1.6.0 asks nowhere for its own classes (no ``isinstance``), so these derive from none and lightly need not be installed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.distributed import gather_rows
from fastssl.loss.nt_xent import NTXentLoss
from fastssl.loss.variants import nearest_neighbor
from fastssl.ops._checks import check_matrix
from fastssl.ops.queue import queue_push_

from ._common import average_parameters

__all__ = ["MemoryBankModule", "NNMemoryBankModule", "NTXentLoss", "update_momentum"]


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """model_ema <- m model_ema + (1 - m) model for all parameters, in their order, in place; buffers stay. m in [0, 1].

    The same bits as lightly's. TypeError or ValueError where the modules do not belong together; nothing is changed then.
    """
    average_parameters("update_momentum", ("model", "model_ema"), model, model_ema, m)


class MemoryBankModule(nn.Module):
    """Bank of older embeddings (``lightly.models.modules.MemoryBankModule``), to be called or subclassed.

    Args:
        size: (K, D); 0 or (0, D): no bank. As in 1.6 another bare number is refused, since D cannot be guessed.
        gather_distributed: push the embeddings of all ranks. Every rank must bring as many.
        feature_dim_first: the bank is returned as (D, K) instead of (K, D).

    Buffers, absent from the state dict as there: ``bank`` (K, D) float32, random unit rows at the start, and ``bank_ptr`` (1,)
    int64. A batch that reaches the end of the bank is cut off there and the pointer returns to 0.
    """

    def __init__(self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True):
        super().__init__()
        self.size = _bank_size(type(self).__name__, size)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.register_buffer("bank", torch.empty(self.size), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)
        if len(self.size) == 2:
            self._init_memory_bank(self.size)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor | None]:
        """output (N, D) -> output and a copy of the bank from before the update, (D, K) or (K, D); None without a bank.

        ``update`` pushes ``output``. ``labels`` are not looked at, as there. The copy is for losses that keep their negatives for
        the backward; ``fastssl.functional.moco_loss`` and ``NTXentLoss`` keep none and take ``self.bank`` itself.
        """
        if self.size[0] == 0:
            return output, None
        bank = self.bank.clone()
        if update:
            self._dequeue_and_enqueue(output)
        return output, bank.t() if self.feature_dim_first else bank

    @torch.no_grad()
    def _init_memory_bank(self, size: tuple[int, ...]) -> None:
        self.bank = F.normalize(torch.randn(size).type_as(self.bank), dim=-1)
        self.bank_ptr = torch.zeros_like(self.bank_ptr)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, batch: Tensor) -> None:
        """batch (N, D), any N of at least 1, brought to the dtype of the bank."""
        check_matrix(type(self).__name__, "output", batch, "N, D")
        if self.gather_distributed:
            batch = gather_rows(batch, even=True)
        queue_push_(self.bank, self.bank_ptr, batch, layout="kd", overflow="truncate")


class NNMemoryBankModule(MemoryBankModule):
    """Nearest neighbours from a bank (``lightly.models.modules.NNMemoryBankModule``; NNCLR, Dwibedi et al. 2021, eq. 1).

    size: (K, D), with K of at least 1.
    """

    def __init__(self, size: int | Sequence[int]):
        super().__init__(size)
        if self.size[0] == 0:
            raise ValueError(f"NNMemoryBankModule: size must be (K, D) with at least one row, got {size}")

    def forward(self, output: Tensor, update: bool = False) -> Tensor:
        """output (N, D) -> (N, D) float32: of each row the row of the bank with the highest cosine similarity, the first of equals.

        ``update`` pushes ``output`` after the look-up. No gradient, no N x K similarities at once.
        """
        check_matrix("NNMemoryBankModule", "output", output, "N, D")
        query = F.normalize(output.detach().to(self.bank.dtype), dim=1)
        found = self.bank[nearest_neighbor(query, F.normalize(self.bank, dim=1))]
        if update:
            self._dequeue_and_enqueue(output)
        return found


def _bank_size(op: str, size: int | Sequence[int]) -> tuple[int, ...]:
    entries = (size,) if isinstance(size, int) else tuple(size)
    if any(entry < 0 for entry in entries):
        raise ValueError(f"{op}: size must not be negative, got {size}")
    if isinstance(size, int) and size > 0:
        raise ValueError(f"{op}: size must be (K, D), since the width D cannot be guessed, or 0 for no bank, got {size}")
    if entries != (0,) and len(entries) != 2:
        raise ValueError(f"{op}: size must be (K, D), or 0 for no bank, got {size}")
    return entries
