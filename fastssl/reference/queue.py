"""Push of keys onto a ring, in plain PyTorch: index arithmetic on the device, no host sync."""

import torch
from torch import Tensor


def queue_push_(
    queue: Tensor, ptr: Tensor, keys: Tensor, label_queue: Tensor | None, labels: Tensor | None, columns: bool, truncate: bool
) -> None:
    """queue (D, K) with ``columns``, else (K, D); ptr int64 of one element; keys (N, D). In place on queue, ptr and label_queue."""
    rows = queue.t() if columns else queue
    size, count = len(rows), len(keys)
    start = ptr.reshape(()) % size
    if truncate:
        kept = torch.arange(size, device=queue.device)  # every row of the queue takes a key, or itself
        key_of = kept - start
        new = (key_of >= 0) & (key_of < count)
        source = key_of.clamp(0, count - 1)
        rows.copy_(torch.where(new[:, None], keys[source], rows))
        if label_queue is not None and labels is not None:
            label_queue.copy_(torch.where(new, labels[source], label_queue))
        end = start + count
        ptr.copy_(torch.where(end >= size, torch.zeros_like(end), end).reshape(ptr.shape))
        return
    first = max(0, count - size)
    places = (start + torch.arange(first, count, device=queue.device)) % size
    rows.index_copy_(0, places, keys[first:])
    if label_queue is not None and labels is not None:
        label_queue.index_copy_(0, places, labels[first:])
    ptr.copy_(((start + count) % size).reshape(ptr.shape))
