"""Keys of earlier batches as negatives: MoCo's queue and a memory bank. State around ``queue_push_``."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from fastssl.checks import FLOATS, INTEGERS, as_python, check_choice, check_flag, check_matrix, check_vector, is_whole, shown
from fastssl.distributed import gather_rows, world_size
from fastssl.ops.queue import push_keys


def _check_options(op: str, overflow: str, dtype: torch.dtype, counts: dict[str, tuple[int, int]], **flags: bool) -> None:
    """``counts``: argument -> (what was given, the least it may be)."""
    for name, (value, least) in counts.items():
        if not is_whole(value):
            raise TypeError(f"{op}: {name} must be a whole number, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {shown(value)}")
        if value >= 2**31:
            raise ValueError(f"{op}: {name} must be below 2^31, got {shown(value)}")
    check_choice(op, "overflow", overflow, ("wrap", "truncate"))
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        got = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
        raise TypeError(f"{op}: dtype must be float32, bfloat16, float16 or float64, got {got}")
    for name, value in flags.items():
        check_flag(op, name, value)
    if flags["gather_distributed"] and not distributed.is_available():
        raise ValueError(f"{op}: gather_distributed=True needs torch.distributed, which this torch build lacks")


def _random_keys(rows: int, columns: int, dtype: torch.dtype, along: int) -> Tensor:
    """(rows, columns), keys of unit length ``along`` one dimension, uniform on the sphere."""
    return nn.functional.normalize(torch.randn(rows, columns).to(torch.promote_types(dtype, torch.float32)), dim=along).to(dtype)


def _push(
    op: str,
    queue: Tensor,
    ptr: Tensor,
    label_queue: Tensor | None,
    keys: Tensor,
    labels: Tensor | None,
    *,
    layout: str,
    overflow: str,
    gather_distributed: bool,
    even: bool,
) -> None:
    """``queue_push_`` of keys (N, D) and labels (N,), those of all processes where ``gather_distributed``."""
    if (label_queue is None) != (labels is None):
        wanted = "must be given, since labels=True" if labels is None else "needs labels=True"
        raise ValueError(f"{op}: labels {wanted}")
    check_flag(op, "even", even)
    name = "keys" if op == "MoCoQueue" else "output"
    if gather_distributed and world_size() > 1:
        check_matrix(op, name, keys, "N, D", empty=True)  # the last batch of an epoch may have none here
        if labels is not None and label_queue is not None:
            check_vector(op, "labels", labels, len(keys), INTEGERS, "keys", keys)
            labels = gather_rows(labels.to(label_queue.dtype), even=even)
        keys = gather_rows(keys, even=even)
    push_keys(op, queue, ptr, keys, layout=layout, overflow=overflow, label_queue=label_queue, labels=labels, name=name)


class MoCoQueue(nn.Module):
    """MoCo's queue of keys (He et al. 2020, section 3.2): ``moco_loss(q, k, queue.queue)``, then ``queue.push(k)``.

    The push may come between loss and backward, because ``moco_loss`` keeps nothing of the queue. A loss of plain PyTorch does;
    autograd then refuses the backward, and the push belongs after it. The buffers have the names and shapes of the MoCo
    repository, whose states load: ``queue`` (D, K), random keys of unit length at the start, and ``queue_ptr`` (1,) int64; with
    labels also ``queue_labels`` (K,) int64, -1 before the first push.

    With several processes give ``gather_distributed=True``: the same pushes everywhere keep the queues of all ranks equal. DDP
    makes them equal when it is built, and by default sends rank 0's buffers to all again at each forward. These are 33 MB for the
    usual queue, and without gathering they replace the other ranks' queues. ``forward_sync_buffers=False`` (torch 2.13) stops
    that; its older form ``broadcast_buffers=False`` also leaves out the first time, so seed all ranks alike.

    Args:
        dim: D, the width of the keys.
        size: K, the number of keys; any batch fits.
        layout: "dk": the queue is (D, K). "kd": it is (K, D).
        overflow: "wrap": keys beyond the end go to the start. "truncate": they are dropped, lightly's rule.
        labels: Whether to keep an integer with each key.
        gather_distributed: Whether to push the keys of all processes, in rank order.
        dtype: float32, bfloat16, float16 or float64, the dtype of the queue; keys are converted to it.

    Attributes:
        queue: (D, K) or (K, D), the keys.
        queue_ptr: (1,) int64, the place of the next key.
        queue_labels: (K,) int64, or None.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> import torch
        >>> from fastssl.momentum import MoCoQueue
        >>> queue = MoCoQueue(dim=2, size=4)
        >>> queue.push(torch.ones(3, 2))
        >>> queue.queue[:, :3].unique(), queue.queue_ptr
        (tensor([1.]), tensor([3]))
    """

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        layout: str = "dk",
        overflow: str = "wrap",
        labels: bool = False,
        gather_distributed: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        check_choice("MoCoQueue", "layout", layout, ("dk", "kd"))
        counts = {"dim": (dim, 1), "size": (size, 1)}
        _check_options("MoCoQueue", overflow, dtype, counts, labels=labels, gather_distributed=gather_distributed)
        self.layout, self.overflow, self.gather_distributed = layout, overflow, gather_distributed
        self.queue: Tensor
        self.queue_ptr: Tensor
        self.queue_labels: Tensor | None
        dim, size = as_python(dim), as_python(size)
        keys = _random_keys(dim, size, dtype, 0) if layout == "dk" else _random_keys(size, dim, dtype, 1)
        self.register_buffer("queue", keys)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("queue_labels", torch.full((size,), -1) if labels else None)

    @property
    def keys(self) -> Tensor:
        """The keys as (K, D), a view of the queue."""
        return self.queue.t() if self.layout == "dk" else self.queue

    def push(self, keys: Tensor, labels: Tensor | None = None, *, even: bool = False) -> None:
        """Writes keys over the oldest ones; there is no gradient and no copy of the queue.

        Args:
            keys: (N, D), any float dtype, on the device of the queue.
            labels: (N,) integers; needed with ``labels=True``, refused without.
            even: With ``gather_distributed`` every process promises to bring as many keys, and the host waits for none of them.

        Raises:
            TypeError, ValueError: An argument is wrong; the message names it. Nothing has been changed then.
        """
        _push(
            "MoCoQueue",
            self.queue,
            self.queue_ptr,
            self.queue_labels,
            keys,
            labels,
            layout=self.layout,
            overflow=self.overflow,
            gather_distributed=self.gather_distributed,
            even=even,
        )


class MemoryBank(nn.Module):
    """The last K rows that a loss has seen, as negatives: ``output, bank = memory(output, update=True)`` with ``bank`` (K, D).

    The buffers are ``bank`` (K, D), random rows of unit length at the start, and ``bank_ptr`` (1,) int64; with labels also
    ``bank_labels`` (K,) int64, -1 before the first push. Rows are kept as they come, so normalise them before.

    There are two ways to use the bank:

    - ``memory(output, update=True)``, as in lightly, copies the bank before it pushes, which is right with any loss.
    - ``memory.read(output)``, loss, ``memory.push(output)`` copies nothing. ``moco_loss``, ``info_nce`` and ``similarity_lse``
      keep nothing of the bank, so the push may come before the backward. A loss of plain PyTorch saves the bank itself: autograd
      then refuses the backward, and the push belongs after it.

    Args:
        size: K, the number of rows; any batch fits. 0: there is no bank, and ``memory(output)`` gives (output, None).
        dim: D, the width of the rows. None: the bank is made at the first batch, with its width and on its device. Give it with
            several processes, because DDP makes equal only what exists when it is built.
        overflow: "wrap": rows beyond the end go to the start. "truncate": they are dropped, lightly's rule.
        labels: Whether to keep an integer with each row.
        gather_distributed: Whether to push the rows of all processes, in rank order; for DDP see ``MoCoQueue``.
        persistent: Whether the state dict holds the bank; lightly's does not.
        dtype: float32, bfloat16, float16 or float64, the dtype of the bank; rows are converted to it.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> import torch
        >>> from fastssl.momentum import MemoryBank
        >>> memory = MemoryBank(size=4, dim=2)
        >>> output, bank = memory(torch.ones(3, 2), update=True)
        >>> bank.shape, memory.bank[:3].unique()
        (torch.Size([4, 2]), tensor([1.]))
    """

    def __init__(
        self,
        size: int,
        dim: int | None = None,
        *,
        overflow: str = "wrap",
        labels: bool = False,
        gather_distributed: bool = False,
        persistent: bool = True,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        counts = {"size": (size, 0)} if dim is None else {"size": (size, 0), "dim": (dim, 1)}
        flags = {"labels": labels, "gather_distributed": gather_distributed, "persistent": persistent}
        _check_options("MemoryBank", overflow, dtype, counts, **flags)
        self.overflow, self.gather_distributed, self._any_width = overflow, gather_distributed, dim is None
        self.bank: Tensor
        self.bank_ptr: Tensor
        self.bank_labels: Tensor | None
        size, dim = as_python(size), as_python(dim)
        persistent = persistent and size > 0
        self.register_buffer("bank", _random_keys(size, dim or 0, dtype, 1), persistent)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent)
        self.register_buffer("bank_labels", torch.full((size,), -1) if labels else None, persistent)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor | None]:
        """Returns (output, bank): the bank (K, D) as it was before this batch, without gradient, or None for size 0.

        Args:
            output: (N, D) float rows on the device of the bank.
            labels: (N,) integers; needed with ``labels=True`` where ``update`` is set.
            update: Whether to push ``output``; the bank is then a copy, otherwise a view.

        Raises:
            TypeError, ValueError: An argument is wrong; the message names it. Nothing has been changed then.
        """
        check_flag("MemoryBank", "update", update)
        if len(self.bank) == 0:
            return output, None
        with self._kept_where_refused():
            bank = self.read(output)
            if update:
                bank = bank.clone()
                self.push(output, labels)
        return output, bank

    def read(self, output: Tensor) -> Tensor:
        """The bank (K, D) for rows (N, D), a view without gradient; a bank without a width takes that of the rows.

        Args:
            output: (N, D) float rows on the device of the bank.

        Raises:
            TypeError, ValueError: An argument is wrong; the message names it.
        """
        check_matrix("MemoryBank", "output", output, "N, D")
        self._make_for(output)
        if output.shape[1] != self.bank.shape[1]:
            raise ValueError(f"MemoryBank: output must have the bank's width {self.bank.shape[1]}, got {tuple(output.shape)}")
        if output.device != self.bank.device:
            raise ValueError(f"MemoryBank: output must be on the device of the bank, {self.bank.device}, got {output.device}")
        return self.bank.detach()

    def push(self, output: Tensor, labels: Tensor | None = None, *, even: bool = False) -> None:
        """Writes rows over the oldest ones, as ``MoCoQueue.push`` does; nothing happens for size 0.

        Args:
            output: (N, D), any float dtype, on the device of the bank.
            labels: (N,) integers; needed with ``labels=True``, refused without.
            even: With ``gather_distributed`` every process promises to bring as many rows, and the host waits for none of them.

        Raises:
            TypeError, ValueError: An argument is wrong; the message names it. Nothing has been changed then.
        """
        if len(self.bank) == 0:
            return
        with self._kept_where_refused():
            self._make_for(output)
            _push(
                "MemoryBank",
                self.bank,
                self.bank_ptr,
                self.bank_labels,
                output,
                labels,
                layout="kd",
                overflow=self.overflow,
                gather_distributed=self.gather_distributed,
                even=even,
            )

    @contextmanager
    def _kept_where_refused(self) -> Iterator[None]:
        """Puts the old bank back where the context, in which it may take its width and device, ends with an error."""
        bank = self.bank
        try:
            yield
        except Exception:
            if self.bank is not bank:
                self.to(bank.device)
                self.bank = bank
            raise

    def _make_for(self, output: Tensor) -> None:
        if self.bank.shape[1]:
            return
        check_matrix("MemoryBank", "output", output, "N, D")
        self.to(output.device)
        self.bank = _random_keys(len(self.bank), output.shape[1], self.bank.dtype, 1).to(output.device)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        saved = state_dict.get(f"{prefix}bank")
        if self._any_width and saved is not None and saved.dim() == 2 and len(saved) == len(self.bank):
            self.bank = self.bank.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
