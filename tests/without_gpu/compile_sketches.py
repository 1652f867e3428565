"""Compile the kernels of ``sigreg`` and ``unit_columns`` as ``compile.py`` does. ``test_compile.py`` runs it.

python -m tests.without_gpu.compile_sketches [--today]      as in compile
"""

import sys

import torch

from fastssl.kernels import sigreg, unit_columns

from .compile import TARGET, TYPES, compile_one, families, verdict

WHOLE = ("V", "N", "S", "K", "length", "samples", "count", "parts")
REAL = ("high", "low", "first_high", "first_low", "step", "factor")


def _numbers(even: bool) -> dict:
    """``even``: widths and numbers of directions are multiples of 16."""
    return dict.fromkeys(WHOLE, ("i32", False)) | dict.fromkeys(REAL, ("fp32", False)) | dict.fromkeys(("D", "S"), ("i32", even))


def _pointers(data: str) -> dict:
    real = ("sums", "total", "grad", "part", "loss")
    return dict.fromkeys((f"{name}_ptr" for name in real), "*fp32") | dict.fromkeys(("z_ptr", "a_ptr", "out_ptr"), data)


def _compiled(kernel, name: str, pointers: dict, even: bool, tile: dict, target: int) -> bool:
    options = {option: tile.get(option) for option in ("num_warps", "num_stages", "maxnreg")}
    constants = {constant: value for constant, value in tile.items() if constant not in options}
    return verdict(name, compile_one(kernel, pointers, _numbers(even), constants, target, *options.values()), target, None)


def tile_cases(target: int, arithmetic: str) -> list[bool]:
    """Both sweeps at a width of 128 and at one that no tile holds, with 17 knots and with more than a program keeps."""
    good = []
    data = TYPES[arithmetic]
    precision = "ieee" if arithmetic == "16-bit" else arithmetic
    dtype = torch.float32 if data == "*fp32" else torch.bfloat16
    for width, even in ((128, True), (20, False)):
        forward, backward = sigreg.tiles_of(dtype, precision, width)
        for knots, first in ((16, 0), (9, 16)) if even else ((5, 0),):
            pointers, name = _pointers(data) | {"out_ptr": "*fp32"}, f"sigreg sums {arithmetic} {width} {knots}"
            good.append(
                _compiled(sigreg.sigreg_sums_kernel, name, pointers, even, forward | {"KNOTS": knots, "FIRST": first}, target)
            )
        for final in (True, False):
            pointers = _pointers(data) | {"out_ptr": data if final else "*fp32"} | ({"total_ptr": None} if final else {})
            name = f"sigreg bwd {arithmetic} {width} {'final' if final else 'part'}"
            good.append(_compiled(sigreg.sigreg_bwd_kernel, name, pointers, even, backward | {"FINAL": final}, target))
    return good


def small_cases(target: int) -> list[bool]:
    """Statistics, sums of parts and directions; no matrix instructions."""
    cases = [
        (sigreg.sigreg_loss_kernel, _pointers("*fp32"), {"BS": 128}, 4),
        (sigreg.sigreg_total_kernel, _pointers("*fp32"), {"BLOCK": 1024}, 4),
        (sigreg.add_parts_kernel, _pointers("*bf16"), {"BLOCK": 1024}, 4),
    ]
    for width in (128, 2048):
        tile = unit_columns.tile_of(width)
        constants = {"STREAM": unit_columns.STREAM, "BB": tile["BB"], "BS": tile["BS"]}
        pointers = {"seed_ptr": "*i64", "out_ptr": "*bf16"}
        cases.append((unit_columns.unit_columns_kernel, pointers, constants, tile["num_warps"]))
    good = []
    for kernel, pointers, constants, warps in cases:
        compiled = compile_one(kernel, pointers, _numbers(True), constants, target, warps, 2)
        good.append(verdict(kernel.fn.__name__, compiled, target, False))
    return good


def main() -> bool:
    good = []
    for family in families("sketches", sys.argv):
        good += small_cases(TARGET[family])
        for arithmetic in TYPES:
            good += tile_cases(TARGET[family], arithmetic)
    return all(good)


if __name__ == "__main__":
    sys.exit(not main())
