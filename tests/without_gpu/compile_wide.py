"""Compile the kernels of ``similarity_wide`` as ``compile.py`` does. ``test_compile.py`` runs it.

python -m tests.without_gpu.compile_wide [--today | --all]      as in compile
"""

import sys

import torch

from fastssl.kernels import similarity_wide
from fastssl.kernels.tiles.config import pick_config

from .compile import TARGET, compile_one, families, verdict

# (launch, variant); "cross" of rows and columns, "own" of rows alone, "two" exponentials. "bare" is CLIP: no ids, whole tiles;
# "plain" has int32 ids; "heavy" has int64 ids, a learnt temperature, no count that 16 divides.
CASES = [("cross", "bare"), ("cross", "heavy"), ("rows", "heavy"), ("narrow", "plain"), ("narrow", "heavy"), ("own", "heavy")]
CASES += [("two", "plain"), ("two", "heavy")]
MORE = [("rows", "plain"), ("cross", "plain"), ("narrow", "bare"), ("own", "bare"), ("two", "bare")]


def wide_case(launch: str, variant: str, family: int, config) -> bool:
    data, real, target = "*bf16", "*fp32", TARGET[family]
    heavy = variant == "heavy"
    ids = {"bare": None, "plain": "*i32", "heavy": "*i64"}[variant]
    pointers = dict.fromkeys(("x_ptr", "y_ptr", "w_ptr"), data) | dict.fromkeys(("x_id_ptr", "y_id_ptr"), ids)
    pointers |= {"range_ptr": ids and "*i64", "factor_ptr": real if heavy else None, "stats_ptr": real}
    pointers |= {f"row_{name}_ptr": real for name in ("top", "sum", "l", "w", "v")}
    pointers |= {f"col_{name}_ptr": None if launch in ("rows", "own") else real for name in ("top", "sum", "l", "w", "v")}
    numbers = {"N": ("i32", False), "M": ("i32", not heavy), "scale": ("fp32", False)}
    numbers |= dict.fromkeys(("D", "s_x", "s_y"), ("i32", True))
    constants = {"BM": config.block_m, "BN": config.block_n, "BK": similarity_wide.SLICE}
    constants |= {"RASTER": similarity_wide.RASTER, "RANGE": config.block_n}
    forward = launch in ("cross", "rows")
    kernel = similarity_wide.wide_fwd_kernel if forward else similarity_wide.wide_weights_kernel
    constants |= {} if forward else {"NARROW": launch == "narrow"}
    compiled = compile_one(kernel, pointers, numbers, constants, target, config.num_warps, config.num_stages, config.max_registers)
    return verdict(f"wide {launch} {config.block_m}x{config.block_n} {variant}", compiled, target, True)


def cases(everything: bool) -> list[bool]:
    """Every configuration; on other GPUs than a Hopper the heavy variants, unless ``everything``."""
    good = []
    for family in families("wide", sys.argv):
        for launch, variant in CASES + (MORE if everything else []):
            config = pick_config("wide two" if launch == "two" else "wide", TARGET[family], torch.bfloat16, 512)
            if config.block_m and (everything or family == 90 or variant == "heavy"):
                good.append(wide_case(launch, variant, family, config))
    return good


if __name__ == "__main__":
    sys.exit(not all(cases("--all" in sys.argv)))
