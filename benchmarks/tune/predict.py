"""What the machine code of a tile says of its speed, without a GPU:  python -m benchmarks.tune.predict [--write]

The usual tile of every case of the tuner is compiled for sm_90 through its launcher, at the largest shape. Then the loop over
blocks of columns is read from the disassembly, along the path that most tiles take: no id of a row stands in the block, and the
logits are small. The clocks of one multiprocessor for a tile are:

    matrix   HGMMA 64 x n x 16: n / 2        shared  operands read, and columns written, 128 bytes a clock
    exp      MUFU, 16 a clock                fma     128 a clock        other  64 lanes a clock (integers, maxima, conversions)
    issue    4 instructions of a warp a clock                           L2     the columns' bytes, 23.7 a clock (5.5 TB/s)

Several programs on one multiprocessor overlap, so the busiest unit decides. A program that is alone waits for its products, and
then the products wait for the program: it takes the clocks of the busier of matrix and shared, and 1.1 of those of the busiest
other unit; k programs take at least a k-th of that each. share = clocks of the product at full rate / clocks of the tile. The
rates come from the data sheet and from published measurements; that of L2 is the least certain. A model, to be refuted by
``benchmarks.tune``; ``--write`` keeps it in ``core/predicted_sm90.json``, from which ``Workload.predicted_ms`` makes the
predictions.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.core.predicted import ARCH, NUM_SMS, PATH, SLICE

L2_BYTES, SHARED_BYTES = 23.7, 128.0
_FMA = ("FFMA", "FADD", "FMUL")
_HALF_RATE = {
    *("IMAD", "IADD3", "VIADD", "LEA", "LOP3", "SHF", "PRMT", "MOV", "CS2R", "SEL", "FSEL", "ISETP", "FSETP", "PLOP3"),
    *("FMNMX", "VIMNMX", "F2FP", "F2F", "I2F", "P2R", "R2P", "VOTE", "POPC"),
}
#: Regions shorter than this are no way of their own.
_LEAST_REGION = 20


@dataclass(frozen=True)
class Instruction:
    at: int
    name: str  # HGMMA.64x128x16.F32.BF16
    operands: str

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]

    def jump(self) -> int | None:
        found = re.search(r"0x([0-9a-f]+)", self.operands) if self.opcode == "BRA" else None
        return found and int(found[1], 16)


def parse(sass: str) -> list[Instruction]:
    """Reads the instructions of one kernel from the output of ``cuobjdump -sass``."""
    lines = (re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_.x]+)(.*?);", line) for line in sass.splitlines())
    return [Instruction(int(line[1], 16), line[2], line[3]) for line in lines if line]


def _loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    for end in code:
        start = end.jump()
        if start is not None and start < end.at:
            yield [i for i in code if start <= i.at <= end.at]


def _seldom(region: list[Instruction]) -> bool:
    """Whether a region that may be jumped over compares ids or takes maxima, which few tiles need."""
    opcodes = Counter(i.opcode for i in region)
    ids = opcodes["FSEL"] >= 8 and not opcodes["MUFU"]
    return not opcodes["HGMMA"] and (ids or opcodes["FMNMX"] >= 16)


def _without_seldom(code: list[Instruction]) -> list[Instruction]:
    left_out: set[int] = set()
    for i in code:
        target = i.jump()
        if target is not None and target > i.at + 16 * _LEAST_REGION:
            region = [other for other in code if i.at < other.at < target]
            left_out |= {other.at for other in region} if _seldom(region) else set()
    return [i for i in code if i.at not in left_out]


def usual_way(code: list[Instruction]) -> list[Instruction]:
    """The instructions that most tiles execute in the loop with the matrix products; of several such loops, the shortest."""
    ways = [_without_seldom(loop) for loop in _loops(code) if any(i.opcode == "HGMMA" for i in loop)]
    if not ways:
        raise ValueError("predict: no loop with matrix products in this code")
    return min(ways, key=len)


def products(way: list[Instruction]) -> tuple[float, float]:
    """(clocks, bytes of operands read from shared memory) of the HGMMA of one warpgroup."""
    full = read = 0.0
    for i in way:
        if size := re.match(r"HGMMA\.64x(\d+)x16", i.name):
            n = int(size[1])
            from_registers = not i.operands.split(",")[1].strip().startswith("gdesc")
            full, read = full + n / 2, read + 32 * n + (0 if from_registers else 2048)
    return full, read


def clocks(way: list[Instruction], warps: int, column_bytes: int) -> dict[str, float]:
    """Clocks of each unit of a multiprocessor for one tile of ``warps`` warps."""
    opcodes = Counter(i.opcode for i in way)
    full, read = products(way)
    return {
        "matrix": full * warps / 4,
        "shared": (read * warps / 4 + column_bytes) / SHARED_BYTES,
        "exp": opcodes["MUFU"] * warps * 2,
        "issue": len(way) * warps / 4,
        "fma": sum(opcodes[k] for k in _FMA) * warps / 4,
        "other": sum(opcodes[k] for k in _HALF_RATE) * warps / 2,
        "L2": column_bytes / L2_BYTES,
    }


def tile_clocks(units: dict[str, float], programs: int) -> tuple[float, str]:
    """(clocks of a tile, the unit that limits it)."""
    beside = max(v for k, v in units.items() if k not in ("matrix", "shared", "L2"))
    bounds = units | {"waiting": (max(units["matrix"], units["shared"]) + 1.1 * beside) / max(1, programs)}
    binds = max(bounds, key=bounds.__getitem__)
    return bounds[binds], binds


def row_of(compiled, kernel: str, config: tuple[int, ...], width: int) -> dict:
    """The line of one compiled tile kernel in the table.

    In ``similarity_hopper`` each group of four warps with 64 rows counts as a program; together they load the columns once.
    """
    from fastssl.testing.compile import disassembly, programs_per_sm, resources

    block_m, block_n, warps = config[:3]
    registers, _ = resources(compiled)
    column_bytes = block_n * width * 2
    programs = programs_per_sm(registers, compiled.metadata.shared, warps, ARCH)
    if len(config) > 5 and config[5]:
        programs = block_m // 64
        block_m, warps, column_bytes = 64, 4, column_bytes / programs
    way = usual_way(parse(disassembly(compiled)))
    units = clocks(way, warps, column_bytes)
    total, binds = tile_clocks(units, programs)
    full = products(way)[0] * warps / 4
    return {
        "kernel": kernel,
        "width": width,
        "config": list(config),
        "registers": registers,
        "programs": programs,
        "instructions_per_logit": round(len(way) * 32 * warps / (block_m * block_n), 2),
        "clocks": {k: round(v) for k, v in units.items()},
        "binds": binds,
        "share": round(full / total, 3),
    }


def rows() -> list[dict]:
    """A line for each key of the tuner's cases, at its usual tile, and one for the specialised backward."""
    from benchmarks.tune.candidates import SPECIALISED
    from benchmarks.tune.candidates import launched as launched_as
    from benchmarks.tune.cases import CASES, forced, usual_config, without_contents
    from fastssl.testing.compile import offline

    largest = {case.key: case for case in sorted(CASES, key=lambda case: case.shape) if not case.chunked}
    tiles = [(key, usual_config(key, ARCH), "") for key in sorted(largest)]
    tiles.insert(1, (("bwd plain", "16-bit", 128), SPECIALISED[0], " specialised"))
    found = []
    with offline(ARCH, NUM_SMS) as launched, without_contents():
        for key, config, name in tiles:
            launched.clear()
            case = largest[key]
            with forced(key[0], config):
                case.build(*case.shape, torch.bfloat16, "cpu")()
            compiled = launched_as(launched, key[0])[-1]
            found.append(row_of(compiled, key[0] + name, config, key[2]))
    return found


def wide_row_of(compiled, kernel: str, config: tuple[int, ...], stored: int) -> dict:
    """The line of a kernel of ``similarity_wide``: clocks of a slice of D, and clocks of the code behind the loop.

    A slice loads its rows and columns from L2. The code behind the loop, which also stores ``stored`` bytes a logit, runs while
    nothing multiplies.
    """
    from fastssl.testing.compile import disassembly, resources

    block_m, block_n, warps = config[:3]
    code = parse(disassembly(compiled))
    loop = usual_way(code)
    units = clocks(loop, warps, 2 * SLICE * (block_m + block_n))
    behind = [i for i in _without_seldom(code) if i.at > loop[-1].at]
    after = clocks(behind, warps, stored * block_m * block_n)
    return {
        "kernel": kernel,
        "width": 0,
        "config": list(config),
        "registers": resources(compiled)[0],
        "clocks": {k: round(v) for k, v in units.items()},
        "slice": round(tile_clocks(units, 1)[0]),
        "epilogue": round(max(v for k, v in after.items() if k not in ("shared", "L2")) + after["L2"]),
    }


def wide_rows() -> list[dict]:
    """The lines of the kernels of ``similarity_wide``: forward of rows and columns, of rows only; weights of both, of rows only."""
    from dataclasses import astuple

    from fastssl.kernels import similarity_wide as wide
    from fastssl.kernels.tiles.config import pick_config
    from fastssl.kernels.tiles.merge import Results
    from fastssl.kernels.tiles.terms import Terms
    from fastssl.ops._operands import Similarity
    from fastssl.testing.compile import offline

    x, of_x = torch.empty(4096, 512, dtype=torch.bfloat16), torch.empty(3, 4096)
    results = [Results(torch.empty(4096), torch.empty(2, 4096), torch.empty(4096, dtype=torch.int32)) for _ in range(2)]
    operands, stats = Similarity(x, x, 1.0, None, None, None), torch.empty(3)
    weights = wide.Weights(operands, Terms(of_x, of_x, stats), None, 256)
    own = weights._replace(terms=Terms(of_x, None, stats))
    everything = slice(0, 4096), slice(0, 4096)
    calls = {
        "wide cross": (lambda: wide.cross_forward(operands, *results), 0),
        "wide rows": (lambda: wide.forward(operands, results[0]), 0),
        "wide narrow": (lambda: weights.chunk(*everything), 2),
        "wide own": (lambda: own.chunk(*everything), 2),
    }
    found = []
    with offline(ARCH, NUM_SMS) as launched:
        for name, (call, stored) in calls.items():
            launched.clear()
            call()
            compiled = next(kernel for kernel_name, kernel in launched if kernel_name.startswith("wide"))
            found.append(wide_row_of(compiled, name, astuple(pick_config("wide", ARCH, x.dtype, 512)), stored))
    return found


def _markdown(head: tuple, lines: list[tuple]) -> str:
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *lines))


def predictions() -> str:
    """A table of all workloads and GPU shapes: for each known GPU the least time and the predicted time, and the target."""
    from benchmarks.core.rates import H100, H200
    from benchmarks.core.registry import WORKLOADS
    from benchmarks.core.workloads import shape_name
    from benchmarks.report.tables import ms_text

    gpus, lines = (H100, H200), []
    for workload in WORKLOADS.values():
        for shape in workload.gpu:
            times = [ms_text(of(shape, rates)) for of in (workload.least_ms, workload.predicted_ms) for rates in gpus]
            targets = ", ".join(str(t) for t in workload.gpu_targets if t.shape == shape and t.kind == "ms")
            lines.append((workload.name, shape_name(shape), *times, targets))
    heads = (f"{what}, {rates.name}" for what in ("limit", "predicted") for rates in gpus)
    return _markdown(("workload", "shape", *heads, "target"), lines)


def table(found: list[dict]) -> str:
    """The lines of the tile kernels as a table."""
    units = ("matrix", "shared", "exp", "issue", "fma", "other", "L2")
    head = ("kernel", "D", "tile", "registers", "programs", "instructions a logit", *units, "binds", "share")
    lines = []
    for row in found:
        m, n, warps, stages = row["config"][:4]
        tile = f"{m} x {n}, {warps} warps, {stages} stages"
        cells = (row["kernel"], row["width"], tile, row["registers"], row["programs"], row["instructions_per_logit"])
        lines.append((*cells, *(row["clocks"][unit] for unit in units), row["binds"], f"{row['share']:.2f}"))
    return _markdown(head, lines)


def main(argv: list[str]) -> int:
    """Prints the table and the predictions, and writes the table where it is asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune.predict", description=__doc__.partition(":")[0])
    parser.add_argument("--write", action="store_true", help=f"write the table to {PATH.name}")
    args = parser.parse_args(argv)
    found, wide = rows(), wide_rows()
    print(table(found))
    print("\n".join(map(str, wide)))
    if args.write:
        from benchmarks.tune.candidates import kernels_digest

        lines = ",\n".join(map(json.dumps, found + wide))
        PATH.write_text(f'{{"arch": {ARCH}, "kernels": "{kernels_digest()}", "rows": [\n{lines}\n]}}\n')
    print(f"\n{predictions()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
