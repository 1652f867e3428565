"""Triton kernels with their launchers, one file for each op. Loaded at the first call on a GPU; importing touches no device."""

import contextlib

import torch
from torch import Tensor


def on_device(t: Tensor):
    """Triton launches on the current device: make it the tensor's, at no cost where it already is."""
    if t.is_cuda and t.device.index != torch.cuda.current_device():
        return torch.cuda.device(t.device)
    return contextlib.nullcontext()
