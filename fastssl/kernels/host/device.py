"""The device that a launch is for: making it the current one, and what tiles and splits depend on."""

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


#: What launches on CPU tensors are planned for: a small Hopper. They are Triton's interpreter, and compiling without a GPU.
CPU = DeviceProperties(90, 4)


@functools.lru_cache(maxsize=64)
def _cuda_properties(index: int) -> DeviceProperties:
    properties = torch.cuda.get_device_properties(index)
    return DeviceProperties(10 * properties.major + properties.minor, properties.multi_processor_count)


def device_properties(device: torch.device) -> DeviceProperties:
    """The properties of a GPU, read once, or those that stand for a CPU's."""
    return _cuda_properties(device.index) if device.type == "cuda" else CPU


def on_device(t: Tensor) -> AbstractContextManager:
    """A context in which the device of ``t`` is the current one, on which Triton launches; it costs nothing where it already is."""
    if t.is_cuda and t.device.index != torch.cuda.current_device():
        return torch.cuda.device(t.device)
    return contextlib.nullcontext()
