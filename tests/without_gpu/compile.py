"""Compile kernels for sm_80, sm_90, sm_100 and sm_120 and read what the assembler says of them. ``test_compile.py`` runs it.

python -m tests.without_gpu.compile fwd|one_pass|cross|triangle|bwd|other [--today | --all]
    --today: sm_90, and on one day of eight one of the other three, as the tests do     --all: every variant, minutes
"""

import contextlib
import datetime
import io
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastssl.kernels import (
    masked_latent,
    normalize,
    similarity_backward,
    similarity_chunked,
    similarity_cross,
    similarity_forward,
    similarity_triangle,
    softplus_sum,
)
from fastssl.kernels.tiles import merge, row_bounds, terms
from fastssl.kernels.tiles.config import ALL_CONFIGS, pick_config
from fastssl.testing.compile import SHARED_KIB, disassembly, resources, serialised

TARGET = {80: 80, 90: 90, 100: 100, 0: 120}  # family -> the architecture that stands for it
MATRIX = {80: ("mma.sync",), 90: ("wgmma",), 100: ("tcgen05.mma", "mma.sync"), 120: ("mma.sync",)}
TYPES = {"16-bit": "*bf16", "tf32": "*fp32", "ieee": "*fp32"}

# The heaviest variants: what a pointer of None leaves out costs less. "plain" is the one that NT-Xent trains with, int32 ids and
# bounds of the columns; the others have int64 ids. "uneven" is plain with a last tile of columns that is not full, "small" a
# problem too small for bounds, "bare" one without ids too (which no loss asks of cross), "transposed" a queue stored (D, M), "rank"
# counts; "split" writes partial results. In the backward "wide" takes two exponentials where "plain" takes one.
PARTIAL = ("lse", "peak")
FACTS = ("range", "norm")
FWD = {"plain": ("bias", "factor", "threshold", "rank"), "heavy": ("lse", "peak", "threshold", "rank", "norm")}
FWD |= {"plain split": (*FWD["plain"], *PARTIAL), "uneven": FWD["plain"], "uneven split": (*FWD["plain"], *PARTIAL)}
FWD |= {"transposed": FWD["plain"], "rank": ("bias", "factor", *FACTS), "heavy rank transposed": ("lse", "peak", *FACTS)}
FWD |= {"transposed split": FWD["plain split"], "small": (*FWD["plain"], *FACTS), "bare": (*FWD["plain"], *FACTS, "x_id", "y_id")}
FWD |= {"bare transposed split": (*FWD["bare"], *PARTIAL)}
CROSS = {"plain": ("factor", "threshold", "rank"), "heavy rank transposed": ("row", "peak", *FACTS)}
TRIANGLE = {"plain": ("factor",), "heavy": (), "heavy without ids": ("range", "id")}
BWD = {"plain": ("bias", "factor", "dbias"), "heavy": (), "stream": ("l_a", "w_a", "v_a"), "own": ("dbias", "l_b", "w_b", "v_b")}
BWD |= {"wide": BWD["plain"], "uneven": BWD["plain"]}
BWD |= {f"{name} split": absent for name, absent in BWD.items()}
VARIANTS = {"fwd": FWD, "one_pass": FWD, "cross": CROSS, "triangle": TRIANGLE, "bwd": BWD}
PLAIN = ("plain", "bare", "transposed", "stream", "own")
# Compiled for the configurations of these families and arithmetics; everything else only with --all.
HOPPER, HALVES = ((90,), tuple(TYPES)), ((90,), ("16-bit",))
SOME = dict.fromkeys(("stream", "own"), HOPPER)
SOME |= dict.fromkeys(("plain split", "wide", "uneven", "transposed", "rank", "small", "bare"), HALVES)
SOME |= {"heavy without ids": HALVES}
SOME |= {"heavy rank transposed": ((80, 90, 100), ("16-bit", "tf32"))}
NEVER = ((), ())


def families(kernel: str, words: list[str]) -> tuple[int, ...]:
    """Those whose configurations of ``kernel`` are compiled. With --today another generation's on the kernel's day of eight."""
    if "--today" not in words:
        return tuple(TARGET)
    kernels, others = (*VARIANTS, "sigmoid", "wide", "launched", "sketches"), [family for family in TARGET if family != 90]
    rounds, day = divmod(datetime.date.today().toordinal(), len(kernels))
    return (90, others[rounds % len(others)]) if kernels[day] == kernel else (90,)


def compile_one(kernel, pointers: dict, numbers: dict, constants: dict, target: int, warps: int, stages: int, registers=None):
    """pointers: name -> type or None; numbers: name -> (type, divisible by 16). Returns the compiled kernel."""
    signature, constexprs, attributes = {}, dict(constants), {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in numbers:
            signature[name], divisible = numbers[name]
            if divisible:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif pointers[name] is None:
            signature[name], constexprs[name] = "constexpr", None
        else:
            signature[name], attributes[(index,)] = pointers[name], [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    said = io.StringIO()
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(said):
        compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    compiled.warnings = re.findall(r"\(C75\d\d\)", said.getvalue())  # none where the kernel came from Triton's cache
    return compiled


def verdict(name: str, compiled, target: int, matrix: bool | None) -> bool:
    """Print one line, and whether nothing is wrong; matrix: instructions wanted, forbidden, or None for either."""
    registers, spilled = resources(compiled)
    kib = compiled.metadata.shared / 1024
    ptx = compiled.asm["ptx"]
    found = [i for i in ("wgmma", "tcgen05.mma", "mma.sync") if i in ptx]
    wrong = ["spills"] * (spilled > 0) + ["too much shared memory"] * (kib > SHARED_KIB[target])
    wrong += getattr(compiled, "warnings", [])
    if "wgmma" in found and serialised(disassembly(compiled)):
        wrong.append("a wait after each wgmma")
    if matrix is not None:
        wrong += ["matrix instructions"] * (matrix != any(i in found for i in MATRIX[target]))
    said = " ".join([*(found or ["-"]), *wrong])
    print(f"{name} sm_{target}: {registers} registers, {spilled} B spilled, {kib:.0f} KiB, {said}", flush=True)
    return not wrong


def _forward_pointers(kernel: str, data: str) -> dict:
    pointers = dict.fromkeys(("x_ptr", "y_ptr"), data) | {"rank_ptr": "*i32", "peak_ptr": "*i32", "range_ptr": "*i64"}
    reals = ("threshold", "factor", "norm", "top", "sum")
    reals += ("row", "column", "column_sum") if kernel == "cross" else ("bias", "lse", "mean")
    pointers |= {f"{name}_ptr": "*fp32" for name in reals}
    return pointers | ({"mean_ptr": None} if kernel == "fwd" else {})


def tile_case(kernel: str, variant: str, family: int, arithmetic: str, width: int, config, even: bool, ones: bool = False) -> bool:
    """``ones``: D = 1 and strides of 1, which Triton compiles in as constants."""
    data, target = TYPES[arithmetic], TARGET[family]
    counts = dict.fromkeys(("N", "NA", "NB"), ("i32", False)) | dict.fromkeys(("split_len", "group_len", "part_len"), ("i32", True))
    numbers = dict.fromkeys(("D", "s_x", "s_y", "s_yd", "s_a", "s_b"), ("i32", True)) | {"scale": ("fp32", False)}
    numbers["M"] = ("i32", "transposed" in variant)
    precision = "ieee" if arithmetic == "16-bit" else arithmetic
    constants = {"EVEN_D": True, "PRECISION": precision, "BM": config.block_m, "BN": config.block_n, "BD": width}
    if kernel == "bwd":
        function = similarity_backward.similarity_bwd_kernel
        reals = ("l_a", "w_a", "v_a", "l_b", "w_b", "v_b", "stats", "factor", "dbias", "bias")
        pointers = {f"{name}_ptr": "*fp32" for name in reals} | {"range_ptr": "*i64"}
        pointers |= dict.fromkeys(("a_ptr", "b_ptr", "out_ptr"), data)
        constants |= {
            "EVEN_B": even,
            "OWN": "stream" not in variant,
            "STREAM": "own" not in variant,
            "FINAL": "split" not in variant,
        }
        pointers |= {"out_ptr": "*fp32"} if "split" in variant else {}
        constants |= {"NARROW": variant.startswith(("plain", "uneven")), "CHOSEN": variant.startswith(("plain", "uneven", "wide"))}
    elif kernel == "triangle":
        function = similarity_triangle.similarity_triangle_kernel
        pointers = _forward_pointers(kernel, data)
        constants |= {"EVEN_N": even}
    else:
        function = similarity_cross.similarity_cross_fwd_kernel if kernel == "cross" else similarity_forward.similarity_fwd_kernel
        pointers = _forward_pointers(kernel, data)
        constants |= {"EVEN_M": even, "s_y" if "transposed" in variant else "s_yd": 1}
        constants |= {"EVEN_N": even} if kernel == "cross" else {}
    pointers |= dict.fromkeys(
        ("id_ptr", *(f"{side}_id_ptr" for side in "xyab")), "*i32" if variant.startswith((*PLAIN, "wide", "uneven")) else "*i64"
    )
    pointers |= {f"{name}_ptr": None for name in VARIANTS[kernel][variant]}
    if ones:
        constants |= {k: 1 for k in numbers if k in function.arg_names and k != "scale"}
        constants["EVEN_D"] = False
    compiled = compile_one(
        function, pointers, numbers | counts, constants, target, config.num_warps, config.num_stages, config.max_registers
    )
    name = f"{kernel} {arithmetic} {config.block_m}x{config.block_n}x{width} {variant}{'' if even else ' ragged'}"
    return verdict(name, compiled, target, arithmetic != "ieee")


def tile_cases(kernel: str, everything: bool) -> list[bool]:
    """Each configuration in its training variant and in its heaviest; the others as SOME says, unless ``everything``."""
    good = []
    for name, family, arithmetic, width, _ in ALL_CONFIGS:
        if name != kernel or family not in families(kernel, sys.argv):
            continue
        for variant in VARIANTS[kernel]:
            of_plain = variant.startswith(PLAIN)
            asked = " plain" if of_plain else " rank" if "rank" in variant else ""
            data = torch.float32 if arithmetic in ("tf32", "ieee") else torch.bfloat16
            config = pick_config(kernel + asked, TARGET[family], data, width, arithmetic)
            some, arithmetics = SOME.get(variant, NEVER if "split" in variant else ((family,), (arithmetic,)))
            if everything or (family in some and arithmetic in arithmetics):
                good.append(tile_case(kernel, variant, family, arithmetic, width, config, of_plain or variant.startswith("wide")))
    return good


def _around_the_tiles() -> list[tuple]:
    """(kernel, pointers, numbers, constants, warps) of what runs before and after tiles and in chunks."""
    real, half, ids = "*fp32", "*bf16", "*i64"
    whole = lambda *names: dict.fromkeys(names, ("i32", False))  # noqa: E731
    number = lambda *names: dict.fromkeys(names, ("fp32", False))  # noqa: E731
    chunk = similarity_chunked
    reals = lambda *names: {f"{name}_ptr": real for name in names}  # noqa: E731
    return [
        (
            terms.row_terms_kernel,
            reals(*(f"{name}{side}" for side in ("", "2") for name in ("top", "total", "g", "l", "w", "v")), "stats"),
            whole("N", "s_g", "N2", "s_g2"), {"NORMALISE": True, "BLOCK": 4096}, 16,
        ),
        (
            merge.merge_kernel,
            reals("top", "sum", "acc", "lse", "all_top", "all_sum", "mean")
            | dict.fromkeys(("peak_ptr", "count_ptr", "all_peak_ptr", "rank_ptr"), "*i32"),
            whole("N", "D", "SPLITS"), {"BM": 8, "BD": 256}, 4,
        ),
        (
            merge.finish_kernel, reals("part", "stats", "factor", "dot") | {"a_ptr": half, "out_ptr": half},
            whole("N", "D", "s_a", "SPLITS") | number("scale", "dot_scale"), {"BM": 8, "BD": 256}, 4,
        ),
        (
            chunk.chunk_rows_kernel,
            reals("s", "bias", "threshold", "limit", "factor", "top", "sum")
            | {"x_id_ptr": ids, "y_id_ptr": ids, "range_ptr": ids, "p_ptr": half, "count_ptr": "*i32", "peak_ptr": "*i32"},
            whole("C", "first") | number("scale"), {"BLOCK": 1024}, 4,
        ),
        (
            chunk.chunk_columns_kernel,
            reals("s", "factor", "top", "sum") | {"x_id_ptr": ids, "y_id_ptr": ids, "peak_ptr": "*i32"},
            whole("R", "C", "state", "seen") | number("scale"), {"BM": 16, "BN": 64}, 4,
        ),
        (
            chunk.chunk_weights_kernel,
            reals("s", "bias", "row_bias", "limit", "factor", "row_l", "row_w", "col_l", "col_w", "dbias")
            | {"w_ptr": half, "x_id_ptr": ids, "y_id_ptr": ids, "row_peak_ptr": "*i32", "col_peak_ptr": "*i32"},
            whole("R", "C", "first_row", "first_col") | number("scale"), {"SYMMETRIC": True, "BM": 32, "BN": 128}, 4,
        ),
    ]  # fmt: skip


def _sums_and_pairs() -> list[tuple]:
    """The same of ``softplus_sum``, the bounds of rows and ``normalize_pair``."""
    real, half, ids = "*fp32", "*bf16", "*i64"
    whole = lambda *names: dict.fromkeys(names, ("i32", False))  # noqa: E731
    number = lambda *names: dict.fromkeys(names, ("fp32", False))  # noqa: E731
    reals = lambda *names: {f"{name}_ptr": real for name in names}  # noqa: E731
    counts = whole("N", "P") | number("scale", "weight")
    pointers = reals("lse", "positive", "total", "dtotal", "dlse", "dpositive")
    cases = [
        (softplus_sum.softplus_sum_fwd_kernel, pointers, counts, {"BLOCK": 4096}, 16),
        (softplus_sum.softplus_sum_bwd_kernel, pointers, counts, {"BLOCK": 512}, 4),
    ]
    for width in (128, 256):
        pointers = reals("norm") | {"y_ptr": half, "id_ptr": ids, "range_ptr": ids}
        constants = {"EVEN_M": False, "EVEN_D": True, "BN": 128, "BD": width}
        cases.append((row_bounds.row_bounds_kernel, pointers, whole("M", "D", "s_y", "s_yd"), constants, 8))
    for width in (128, 8192):
        bm, bd, warps = normalize.tile_shape(width)
        tile = {"BM": bm, "BD": bd}
        pointers = reals("norm", "dot", "ddot") | dict.fromkeys(("a_ptr", "b_ptr", "z_ptr", "dz_ptr", "da_ptr", "db_ptr"), half)
        numbers = whole("B", "D", "s_a", "s_b", "s_dz", "s_ddot", "s_z") | number("eps")
        pair = (normalize.normalize_pair_fwd_kernel, normalize.normalize_pair_bwd_kernel)
        cases += [(kernel, pointers, numbers, tile, warps) for kernel in pair]
    return cases


def _latents() -> list[tuple]:
    """The same of ``masked_latent``: rows that share a program, one row, and one that is wider than a program."""
    whole = dict.fromkeys(("R", "K", "N", "L", "s_grad"), ("i32", False))
    whole |= dict.fromkeys(("D", "s_p", "s_k", "s_n", "s_l"), ("i32", True))
    whole |= dict.fromkeys(("share", "value", "eps"), ("fp32", False))
    pointers = {f"{name}_ptr": "*fp32" for name in ("weight", "grad", "row")} | {"ids_ptr": "*i64"}
    pointers |= dict.fromkeys(("pred_ptr", "target_ptr", "dpred_ptr"), "*bf16")
    cases = [(masked_latent.latent_sum_kernel, {"row_ptr": "*fp32", "total_ptr": "*fp32"}, whole, {"BLOCK": 4096}, 16)]
    for width, loss in ((192, "l1"), (1024, "smooth_l1"), (8192, "power")):
        br, bd, warps = masked_latent.tile_shape(width)
        constants = {"LOSS": masked_latent.LOSSES[loss], "NORMALIZE": True, "BR": br, "BD": bd}
        cases.append((masked_latent.masked_latent_kernel, pointers, whole, constants, warps))
    return cases


def small_cases() -> list[bool]:
    """The kernels around the tiles, and normalize_pair; memory-bound, no matrix instructions."""
    good = [
        tile_case(
            kernel, "heavy" if kernel in ("bwd", "triangle") else "heavy rank transposed", 90, "16-bit", 16, config, False, True
        )
        for kernel, family, arithmetic, width, config in ALL_CONFIGS
        if (family, arithmetic, width) == (90, "16-bit", 128) and kernel in VARIANTS
    ]
    for kernel, pointers, numbers, constants, warps in [*_around_the_tiles(), *_sums_and_pairs(), *_latents()]:
        ones = {k: 1 for k in numbers if numbers[k][0] == "i32" and k in kernel.arg_names}
        compiled = compile_one(kernel, pointers, numbers, constants | ones, 90, warps, 3)
        good.append(verdict(f"{kernel.fn.__name__} of ones", compiled, 90, False))
        for target in (80, 90, 100):
            compiled = compile_one(kernel, pointers, numbers, constants, target, warps, 3)
            good.append(verdict(kernel.fn.__name__, compiled, target, False))
    return good


if __name__ == "__main__":
    part = sys.argv[1]
    sys.exit(not all(small_cases() if part == "other" else tile_cases(part, "--all" in sys.argv)))
