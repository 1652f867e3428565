"""Compile the kernels of ``sigmoid_pair`` as ``compile.py`` does. ``test_compile.py`` runs it.

python -m tests.without_gpu.compile_sigmoid [--today | --all]      as in compile
"""

import sys

from fastssl.kernels import sigmoid_pair, sigmoid_pair_chunked, sigmoid_pair_terms
from fastssl.kernels.tiles.config import ALL_CONFIGS, TileConfig

from .compile import TARGET, TYPES, compile_one, families, verdict

# What a variant leaves out: the sweep that trains with all four gradients, the same with weights, the second side, no gradient.
VARIANTS = {
    "plain": ("a_weight", "b_weight", "factor", "term", "stats"),
    "heavy": (),
    "side": ("loss", "sum", "dot", "stats", "a_weight", "b_weight"),
    "loss": ("out", "sum", "dot", "stats", "a_weight", "b_weight"),
}
REAL = ("a_weight", "b_weight", "factor", "term", "stats", "out", "loss", "sum", "dot")


def _pointers(data: str, absent: tuple[str, ...]) -> dict:
    pointers = dict.fromkeys((f"{name}_ptr" for name in REAL), "*fp32")
    pointers |= {"a_ptr": data, "b_ptr": data, "a_id_ptr": "*i64", "b_id_ptr": "*i64", "range_ptr": "*i64"}
    return pointers | {f"{name}_ptr": None for name in absent}


def tile_case(variant: str, family: int, arithmetic: str, width: int, config, even: bool, ones: bool = False) -> bool:
    """``ones``: D = 1 and strides of 1, which Triton compiles in as constants."""
    numbers = dict.fromkeys(("NA", "NB"), ("i32", False)) | dict.fromkeys(("scale", "bias"), ("fp32", False))
    numbers |= dict.fromkeys(("D", "s_a", "s_b", "split_len"), ("i32", True))
    constants = {
        "FINAL": True, "EVEN_B": even, "EVEN_D": True, "PRECISION": "ieee" if arithmetic == "16-bit" else arithmetic,
        "BM": config.block_m, "BN": config.block_n, "BD": width,
    }  # fmt: skip
    pointers = _pointers(TYPES[arithmetic], VARIANTS[variant])
    if ones:
        constants |= dict.fromkeys(("D", "s_a", "s_b"), 1) | {"EVEN_D": False}
    target = TARGET[family]
    kernel = sigmoid_pair.sigmoid_pair_kernel
    compiled = compile_one(kernel, pointers, numbers, constants, target, config.num_warps, config.num_stages, config.max_registers)
    name = f"sigmoid {arithmetic} {config.block_m}x{config.block_n}x{width} {variant}{'' if even else ' ragged'}"
    return verdict(name, compiled, target, arithmetic != "ieee")


def tile_cases(everything: bool) -> list[bool]:
    """Every configuration with all gradients, plain and heavy; the lighter variants for sm_90 only, unless ``everything``. A tile
    is derived from the backward's, or measured for this kernel."""
    good = []
    for name, family, arithmetic, width, config in ALL_CONFIGS:
        if name not in ("bwd", "sigmoid") or family not in families("sigmoid", sys.argv):
            continue
        if name == "bwd":
            config = sigmoid_pair.tile_of(config, TARGET[family])
        for variant in VARIANTS:
            for even in (True, False) if everything else (variant != "heavy",):
                if everything or family == 90 or variant in ("plain", "heavy"):
                    good.append(tile_case(variant, family, arithmetic, width, config, even))
    return good


def small_cases() -> list[bool]:
    """Chunks and sums; memory-bound, no matrix instructions."""
    whole = lambda *names: dict.fromkeys(names, ("i32", False))  # noqa: E731
    rows = {f"{name}_ptr": "*fp32" for name in ("rows", "loss", "dbias", "dscale")}
    chunk = _pointers("*bf16", ()) | {"s_ptr": "*fp32", "w_ptr": "*bf16"}
    numbers = whole("C", "stride") | dict.fromkeys(("scale", "bias"), ("fp32", False))
    cases = [
        (sigmoid_pair_chunked.sigmoid_chunk_kernel, chunk, numbers, {"SPAN": 4096, "BLOCK": 1024}, 4),
        (sigmoid_pair_terms.sums_kernel, rows, whole("K", "stride"), {"BLOCK": 4096}, 16),
    ]
    good = [tile_case("heavy", 90, "16-bit", 16, TileConfig(128, 64, 8, 3), False, True)]
    for kernel, pointers, kernel_numbers, constants, warps in cases:
        ones = {k: 1 for k in kernel_numbers if kernel_numbers[k][0] == "i32" and k != "stride"}
        compiled = compile_one(kernel, pointers, kernel_numbers, constants | ones, 90, warps, 3)
        good.append(verdict(f"{kernel.fn.__name__} of ones", compiled, 90, False))
        for target in (80, 90, 100):
            compiled = compile_one(kernel, pointers, kernel_numbers, constants, target, warps, 3)
            good.append(verdict(kernel.fn.__name__, compiled, target, False))
    return good


if __name__ == "__main__":
    sys.exit(not all(small_cases() + tile_cases("--all" in sys.argv)))
