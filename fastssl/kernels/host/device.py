"""The device of a launch: its properties, on which tiles and splits depend, and the context that makes it the current device."""

import contextlib
import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DeviceProperties:
    arch: int  # compute capability, 90 = Hopper
    num_sms: int  # multiprocessors


#: Launches on CPU tensors are planned for a small Hopper. They happen in Triton's interpreter and in compilation without a GPU.
CPU = DeviceProperties(90, 4)


@functools.lru_cache(maxsize=64)
def _cuda_properties(index: int) -> DeviceProperties:
    properties = torch.cuda.get_device_properties(index)
    return DeviceProperties(10 * properties.major + properties.minor, properties.multi_processor_count)


def device_properties(device: torch.device) -> DeviceProperties:
    """The properties of a GPU, which are read once, or those that launches on a CPU are planned for."""
    return _cuda_properties(device.index) if device.type == "cuda" else CPU


def on_device(t: Tensor) -> AbstractContextManager:
    """A context in which the device of ``t`` is the current one, since Triton launches on the current device. It costs next to
    nothing where ``t`` is there already."""
    if t.is_cuda and t.device.index != torch.cuda.current_device():
        return torch.cuda.device(t.device)
    return contextlib.nullcontext()
