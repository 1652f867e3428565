"""What each kind of GPU reaches: the rates behind predicted times. An H100 and an H200 differ in that of the memory only.

    flop_per_s         a bfloat16 product of an 8192 cube            bytes_per_s      a large copy, bytes read and written
    matrix_flop_per_s  the matrix units at the clock under load      l2_bytes_per_s   reads out of L2

The first two were measured on both, the other two come from the data sheet and from published measurements. The whole name of the
device decides: an H100 PCIe or an H200 NVL is another machine, and a GPU without a line here is measured where it is. Imports
``timing``.
"""

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Rates of one kind of GPU; ``name`` is what tables call it."""

    name: str
    flop_per_s: float
    bytes_per_s: float
    matrix_flop_per_s: float
    l2_bytes_per_s: float


_HOPPER = {"flop_per_s": 790e12, "matrix_flop_per_s": 132 * 4096 * 1.755e9, "l2_bytes_per_s": 5.5e12}
H100 = Rates("H100", bytes_per_s=3.0e12, **_HOPPER)
H200 = Rates("H200", bytes_per_s=4.3e12, **_HOPPER)
#: Name that the driver gives the device -> its rates.
KNOWN = {"NVIDIA H100 80GB HBM3": H100, "NVIDIA H200": H200}


@functools.cache
def measured(name: str) -> Rates:
    """Measures the GPU that is here. The rate of a matrix product stands for that of its matrix units, never measured alone."""
    import torch

    from benchmarks.core import timing

    product = timing.gpu_product_rate(torch.bfloat16)
    return Rates(name, product, timing.gpu_memory_rate(), product, timing.gpu_memory_rate(timing.L2_ELEMENTS, repeats=50))


def of_device(name: str) -> Rates:
    """Rates of the GPU that is here and has this name: known ones, or measured now."""
    return KNOWN[name] if name in KNOWN else measured(name)
