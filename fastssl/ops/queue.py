"""The op that pushes keys onto a queue: keys overwrite the oldest rows, and the pointer moves on, on the device.

    queue[(ptr + i) mod K] <- keys_i,  i = 0 .. N - 1;    ptr <- (ptr + N) mod K                                    wrap
    queue[ptr + i] <- keys_i  while ptr + i < K;          ptr <- ptr + N, or 0 where that reaches K                 truncate

N D elements are read and written. On a GPU the host never reads the pointer, so that a CUDA graph can capture the push.
"""

from typing import Any

import torch
from torch import Tensor

from fastssl.checks import INTEGERS, check_choice, check_data, check_dense, check_matrix, check_vector, readable

from ._lists import bump_versions, check_apart, check_stored, check_writable, share_memory
from ._register import _C, define_op, refuse_transforms

_queue_push = define_op(
    "queue_push_",
    "(Tensor(a!) queue, Tensor(b!) ptr, Tensor keys, Tensor(c!)? label_queue, Tensor? labels, bool columns, bool truncate) -> ()",
    lambda *_: None,
    "queue",
)
_push_now: Any = getattr(_C, "push_now", None)


def queue_push_(
    queue: Tensor,
    ptr: Tensor,
    keys: Tensor,
    *,
    layout: str = "dk",
    overflow: str = "wrap",
    label_queue: Tensor | None = None,
    labels: Tensor | None = None,
) -> None:
    """Writes keys over the oldest ones of a queue and moves the queue's pointer on, in place (He et al. 2020, section 3.2).

    The push may run between a loss and its backward: ``moco_loss`` and ``similarity_lse`` keep nothing of the queue.

    Args:
        queue: (D, K) with ``layout="dk"`` as in the MoCo repository, (K, D) with "kd" as in lightly; float32, bfloat16, float16
            or float64, any strides. It is changed in place.
        ptr: int64, one element, on the device of ``queue``: the place of the next key, in [0, K). It is changed in place.
        keys: (N, D), any N of at least 1, any float dtype, on the same device. They are converted to the dtype of the queue and
            get no gradient.
        layout: "dk" or "kd".
        overflow: With "wrap" keys beyond the end go to the start, and of more than K keys the last K stay. With "truncate",
            lightly's rule, keys beyond the end are dropped and the pointer returns to 0.
        label_queue: (K,) integers, pushed with the same pointer and changed in place; needs ``labels``.
        labels: (N,) integers, one for each key; needs ``label_queue``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. Queue, pointer and labels are unchanged then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import queue_push_
        >>> queue, ptr = torch.zeros(2, 4), torch.zeros(1, dtype=torch.int64)  # D = 2, K = 4
        >>> queue_push_(queue, ptr, torch.ones(3, 2))
        >>> queue[0], ptr
        (tensor([1., 1., 1., 0.]), tensor([3]))
    """
    push_keys("queue_push_", queue, ptr, keys, layout=layout, overflow=overflow, label_queue=label_queue, labels=labels)


def push_keys(op: str, queue, ptr, keys, *, layout: str, overflow: str, label_queue=None, labels=None, name: str = "keys") -> None:
    """``queue_push_`` for the public function ``op``, whose messages call the keys ``name``."""
    refuse_transforms(op)
    quick = _push_now is not None and not torch.compiler.is_compiling()
    if quick and _push_now(queue, ptr, keys, label_queue, labels, layout, overflow):
        return
    check_choice(op, "layout", layout, ("dk", "kd"))
    check_choice(op, "overflow", overflow, ("wrap", "truncate"))
    check_matrix(op, "queue", queue, "D, K" if layout == "dk" else "K, D")
    check_matrix(op, name, keys, "N, D")
    size, width = queue.shape if layout == "kd" else reversed(queue.shape)
    if keys.shape[1] != width:
        raise ValueError(f"{op}: {name} must have the queue's width {width}, got shape {tuple(keys.shape)}")
    if keys.device != queue.device:
        raise ValueError(f"{op}: queue and {name} must be on the same device, got {queue.device} and {keys.device}")
    check_data(op, name, keys, "queue", queue)
    if max(size, len(keys)) >= 2**31:
        raise ValueError(f"{op}: queue and {name} must have fewer than 2^31 rows, got {size} and {len(keys)}")
    _check_pointer(op, ptr, size, queue)
    if (label_queue is None) != (labels is None):
        raise ValueError(f"{op}: label_queue and labels must be given together")
    if labels is not None:
        check_vector(op, "label_queue", label_queue, size, INTEGERS, "queue", queue)
        check_vector(op, "labels", labels, len(keys), INTEGERS, name, keys)
    written = {"queue": queue, "ptr": ptr} | ({} if label_queue is None else {"label_queue": label_queue})
    _check_memory(op, written, {name: keys} | ({} if labels is None else {"labels": labels}))
    with torch.no_grad():
        keys = _apart(keys.detach(), written).to(queue.dtype)
        labels = None if labels is None else _apart(labels, written).to(label_queue.dtype)
        _queue_push(queue, ptr, keys, label_queue, labels, layout == "dk", overflow == "truncate")
        bump_versions(list(written.values()))


def _check_memory(op: str, written: dict[str, Tensor], read: dict[str, Tensor]) -> None:
    for name, tensor in written.items():
        check_writable(op, name, tensor)
    for name, tensor in (written | read).items():
        check_stored(op, name, tensor)
    check_apart(op, {name: [tensor] for name, tensor in written.items()}, {}, "each needs its own")


def _apart(source: Tensor, written: dict[str, Tensor]) -> Tensor:
    """The values of ``source``, copied where they lie in memory that the push overwrites while it reads them."""
    if torch.compiler.is_compiling():
        return source
    return source.clone() if any(share_memory(source, t) for t in written.values()) else source.resolve_neg()


def _check_pointer(op: str, ptr: Tensor, size: int, queue: Tensor) -> None:
    check_dense(op, "ptr", ptr, "an int64 tensor of one element")
    if ptr.dtype != torch.int64 or ptr.numel() != 1:
        raise ValueError(f"{op}: ptr must be an int64 tensor of one element, got {ptr.dtype} {tuple(ptr.shape)}")
    if ptr.device != queue.device:
        raise ValueError(f"{op}: ptr must be on the device of the queue, {queue.device}, got {ptr.device}")
    check_data(op, "ptr", ptr, "queue", queue)
    if readable(ptr) and not 0 <= ptr.item() < size:
        raise ValueError(f"{op}: ptr must be in [0, {size}), got {ptr.item()}")
