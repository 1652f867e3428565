"""float32 masters of a half-precision teacher: the averages that are kept beside it, and written to it rounded."""

from typing import Any

import torch
from torch import Tensor, nn


class Masters(nn.Module):
    """float32 averages in a tree with the names of the tensors they belong to; no change of dtype reaches them."""

    def _apply(self, fn, recurse=True):
        def keep_dtype(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(keep_dtype, recurse)


def plant(values: dict[str, Tensor]) -> Masters:
    """A tree of modules whose ``named_buffers()`` are these values."""
    root = Masters()
    for name, value in values.items():
        *path, last = name.split(".")
        node: nn.Module = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Masters())
            node = node.get_submodule(part)
        node.register_buffer(last, value)
    return root


def master_of(tensor: Any, old: Tensor | None, ours: bool, wide: Tensor) -> Tensor:
    """The float32 values of a half-precision tensor: the old ones on its device and mesh, or those of ``wide``."""
    if old is not None and old.shape == tensor.shape and hasattr(tensor, "placements") and not hasattr(old, "placements"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(old.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    if old is not None and old.shape == tensor.shape and ours:
        return old.to(tensor.device)
    return wide.to(tensor.device, torch.float32)
