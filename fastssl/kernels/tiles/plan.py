"""A launch of a tile kernel: which tile, how many splits of the columns, and the constants that the kernel is compiled with."""

import functools
from typing import NamedTuple

import triton
from torch import Tensor

from ..host.device import device_properties
from .config import TileConfig, pick_config, pick_splits


class Plan(NamedTuple):
    config: TileConfig
    splits: int
    length: int  # columns of a split
    options: dict


def tile_for(kernel: str, x: Tensor, precision: str = "ieee") -> TileConfig:
    """The tile that ``pick_config`` names for products of the rows x (N, D) on their device."""
    return pick_config(kernel, device_properties(x.device).arch, x.dtype, x.shape[1], precision)


@functools.lru_cache(maxsize=256)
def tile_options(width: int, config: TileConfig, precision: str) -> dict:
    """The constants that every tile kernel takes, and Triton's own options."""
    bd = triton.next_power_of_2(max(width, 16))
    return {
        "EVEN_D": width == bd, "PRECISION": precision, "BM": config.block_m, "BN": config.block_n, "BD": bd,
        "num_warps": config.num_warps, "num_stages": config.num_stages, "maxnreg": config.max_registers,
    }  # fmt: skip


def plan(kernel: str, rows: int, columns: int, x: Tensor, precision: str) -> Plan:
    """The launch of ``kernel`` that owns ``rows`` and streams ``columns`` of the width, dtype and device of x."""
    config = tile_for(kernel, x, precision)
    splits, length = pick_splits(rows, columns, config, device_properties(x.device).num_sms)
    return Plan(config, splits, length, tile_options(x.shape[1], config, precision))
