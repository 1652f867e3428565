"""Which tiles are worth a GPU's time: a grid, cut down by register arithmetic, then compiled, and kept where nothing spills.

``python -m benchmarks.tune --list`` writes ``candidates_sm90.json``, one line for each tile that is kept: registers and shared
memory of the variant that trains, and how many programs an SM holds at once. Make the list again when a tile kernel has changed. On
a GPU the tuner compiles each candidate first, and launches none that spills by now. Imports ``cases``.
"""

import ast
import hashlib
import importlib.metadata
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.tune.cases import CASES, FUNCTIONS, SCALE, Call, Case, Config, Key, base, forced, usual_config, without_contents
from fastssl import kernels
from fastssl.kernels import sigmoid_pair, similarity, similarity_cross
from fastssl.kernels.similarity_backward import row_owner
from fastssl.kernels.tiles.config import TileConfig
from fastssl.kernels.tiles.terms import Terms
from fastssl.ops._operands import Similarity

#: Number of SMs that launches are split for when they compile offline: that of an H100 or H200.
NUM_SMS = 132
#: Rows and columns of the launches with all optional operands: so many that the kernels compute bounds of blocks of columns.
ROWS, COLUMNS = 8186, 8170
#: Tiles of ``similarity_hopper``.
SPECIALISED = tuple((128, 64, 8, stages, 1, True) for stages in (3, 4))
CHUNKS = tuple(product((1024, 2048, 4096, 8192), (21, 22, 23, 24, 25)))
#: Tiles of ``similarity_wide``, chosen by hand; they are compiled when they are timed.
WIDE = tuple(astuple(TileConfig(*tile)) for tile in ((128, 256, 8, 3), (128, 256, 8, 4), (128, 128, 8, 3), (128, 128, 8, 4)))


def path(arch: int) -> Path:
    return Path(__file__).parent / f"candidates_sm{arch}.json"


def _promising(kernel: str, width: int, config: Config) -> bool:
    """Whether a tile may be fast, by arithmetic alone.

    S (block_m, block_n) and, except in the forwards, the accumulator (block_m, D), both float32, take at most 144 registers of a
    thread, and at least 32 at D = 128, 16 at larger D. The loaded rows and columns fit into the shared memory of an SM, as many
    times as programs are wanted on it.
    """
    block_m, block_n, warps, stages, programs = config
    threads = 32 * warps
    s, acc = block_m * block_n / threads, 0 if kernel in ("fwd", "cross", "triangle") else block_m * width / threads
    most = {"fwd": 128, "cross": 64, "triangle": 128}.get(kernel, 144)
    kib = (block_m + stages * block_n) * width * 2 / 1024
    return (
        (32 if width == 128 else 16) <= s + acc <= most
        and s >= 16
        and kib <= 226 / programs
        and (stages < 4 or block_n == 32)
        and (kernel not in ("sigmoid", "triangle") or block_n <= 64)
        and (kernel != "triangle" or block_m >= 128)
        and programs in ((1, 2) if warps == 8 else (2, 3))
        and 65536 // (threads * programs) >= 1.5 * (s + acc)
    )


def grid(key: Key) -> list[Config]:
    """The tiles of a key that are compiled."""
    kernel, _, width = base(key[0]), *key[1:]
    tiles = product((64, 128, 256) if kernel == "triangle" else (64, 128), (32, 64, 128), (4, 8), (2, 3, 4), (1, 2, 3))
    specialised = SPECIALISED if key == ("bwd plain", "16-bit", 128) else ()
    return [*(astuple(TileConfig(*config)) for config in tiles if _promising(kernel, width, config)), *specialised]


def _operands(width: int) -> tuple[torch.Tensor, ...]:
    """x (N, D), y (M, D), ids and a vector of float32 of each; neither a block nor 16 divides N or M."""
    n, m = ROWS, COLUMNS
    x, y = (torch.zeros(count, width, dtype=torch.bfloat16) for count in (n, m))
    return x, y, torch.arange(n), torch.arange(m), torch.zeros(n), torch.zeros(m)


def heavy(kernel: str, width: int) -> Call:
    """A launch with all optional operands: int64 ids, a bias or weights, a learnt temperature, sizes that no block divides.

    That of CLIP has transposed columns, and counts the logits above the positive.
    """
    x, y, x_id, y_id, of_x, of_y = _operands(width)
    one = torch.ones(1)
    if kernel in ("fwd", "one_pass"):
        call = similarity.similarity_fwd if kernel == "fwd" else similarity.similarity_one_pass
        return lambda: call(x, y, SCALE, one, x_id, y_id, of_y, None)
    if kernel == "cross":
        transposed = y.t().contiguous().t()
        return lambda: similarity_cross.similarity_cross_fwd(x, transposed, SCALE, one, x_id, y_id, of_x, 0)
    if kernel == "sigmoid":
        return lambda: sigmoid_pair.sigmoid_pair(x, y, SCALE, one, 0.0, one, x_id, y_id, of_x, of_y, (True, False, True, True))
    terms, stats, out, sums = _terms(), torch.zeros(3), torch.zeros_like(x), torch.zeros(ROWS)
    return lambda: row_owner(Similarity(x, x, SCALE, one, x_id, x_id, of_x), Terms(terms, terms, stats), out, sums, None)


def _terms() -> torch.Tensor:
    """(3, ROWS) whose rows have the alignment that ``row_terms`` gives them."""
    return torch.zeros(3, 8192)[:, :ROWS]


def _one_sided(width: int) -> Iterator[Call]:
    """Launches of the backward that make the gradient of x only, and of y only."""
    x, y, x_id, y_id, _, of_y = _operands(width)
    dx, dy, sums = torch.zeros_like(x), torch.zeros_like(y), torch.zeros(COLUMNS)
    operands, terms = Similarity(x, y, SCALE, None, x_id, y_id, of_y), Terms(_terms(), None, torch.zeros(3))
    yield lambda: row_owner(operands, terms, dx, None, None)
    yield lambda: row_owner(operands.swapped(), terms.swapped(), dy, sums, None)


def _plain(case: Case) -> Call:
    """The call of a case on CPU tensors. Kernels that its preparation launches are compiled with their usual tiles."""
    return case.build(*case.shape, torch.bfloat16, "cpu")


def launched(found: list, kernel: str) -> list:
    """The compiled launches of a kernel. Of a plain backward: only those with one exponential, which most steps take."""
    from fastssl.testing.compile import constant

    functions = [FUNCTIONS[base(kernel)]] + [FUNCTIONS["fwd"]] * (base(kernel) == "triangle")  # the forward has either
    compiled = [kernel_found for name, kernel_found in found if name in functions]
    if kernel == "bwd plain":
        compiled = [k for k in compiled if constant(k, "NARROW")]
        compiled += [kernel_found for name, kernel_found in found if name == "similarity_narrow_bwd_kernel"]
    return compiled


def needs(found: list, kernel: str) -> tuple[int, int, int]:
    """(registers, spilled bytes, bytes of shared memory): the largest of each among the launches of the kernel."""
    from fastssl.testing.compile import resources

    numbers = [(*resources(k), k.metadata.shared) for k in launched(found, kernel)]
    return tuple(max(column) for column in zip(*numbers, strict=True))


def judge(found: list, case: Case, config: Config, arch: int = 90) -> dict | None:
    """The line of a tile that neither spills nor fails in any case of its key; None for other tiles.

    A tile that is not for plain launches only must also compile with all optional operands. Must be called inside ``offline``.
    """
    from fastssl.testing.compile import disassembly, programs_per_sm, serialised

    kernel, arithmetic, width = case.key
    others = [] if kernel.endswith(" plain") else [heavy(kernel, width), *(_one_sided(width) if kernel == "bwd" else ())]
    calls = [*others, *(_plain(same) for same in CASES if same.key == case.key)]
    for call in calls:
        found.clear()
        with forced(kernel, config):
            call()
        registers, spilled, shared = needs(found, kernel)
        held = programs_per_sm(registers, shared, config[2], arch)
        if spilled or held < config[4] or any(serialised(disassembly(k)) for k in launched(found, kernel)):
            return None
    line = {"kernel": kernel, "arithmetic": arithmetic, "width": width, "config": list(config)}
    return line | {"registers": registers, "shared": shared, "programs": held}


def _compiled_text(source: str) -> Iterator[str]:
    """The functions of a module that a GPU compiles, and the constants that they read; without comments, docstrings and layout."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            yield ast.unparse(node)
        elif isinstance(node, ast.Assign) and "constexpr(" in ast.unparse(node.value):
            yield ast.unparse(node)


def kernels_digest() -> str:
    """Of what is compiled of the tile kernels, that a list may be known to be older than they are. Where a function stands and what
    its comments say makes no difference."""
    folder = Path(kernels.__file__).parent
    files = (file for names in ("similarity*.py", "sigmoid_pair*.py", "tiles/*.py") for file in folder.glob(names))
    texts = (text for file in files if not file.stem.endswith("_chunked") for text in _compiled_text(file.read_text()))
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def _compile_key(arch: int, case: Case) -> list[dict]:
    """The lines of the tiles of a case's key that are kept. A tile that failed is not tried with more stages or more programs."""
    from fastssl.testing.compile import offline

    lines: list[dict] = []
    failed: dict[tuple, int] = {}
    with offline(arch, NUM_SMS) as found, without_contents():
        for config in grid(case.key):
            hopeless = config[4] >= failed.get(config[:3], 1000) and config not in SPECIALISED
            line = None if hopeless else judge(found, case, config, arch)
            if line:
                lines.append(line)
            elif not hopeless:
                failed[config[:3]] = config[4]
            print(
                f"{' '.join(map(str, case.key))} {config}: {line or 'spills, does not fit or waits after each product'}", flush=True
            )
    return lines


def compile_all(arch: int, jobs: int = 1) -> dict:
    """The list as {"arch", "versions", "kernels", "candidates"}.

    Processes share the keys; one free core takes a quarter of an hour.
    """
    first = {case.key: case for case in reversed(CASES) if not case.chunked}
    versions = {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
    found = {"arch": arch, "versions": versions, "kernels": kernels_digest()}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        of_keys = pool.map(partial(_compile_key, arch), reversed(first.values()), chunksize=1)
    return found | {"candidates": [line for lines in of_keys for line in lines]}


def write(found: dict, file: Path) -> None:
    """Writes the list as JSON, with one candidate on each line."""
    head = json.dumps({k: v for k, v in found.items() if k != "candidates"})
    lines = ",\n".join(map(json.dumps, found["candidates"]))
    file.write_text(f'{head[:-1]}, "candidates": [\n{lines}\n]}}\n')


def read(file: Path) -> dict[Key, dict[Config, dict]]:
    """Reads a list as key -> tile -> its line."""
    found: dict[Key, dict[Config, dict]] = {}
    for line in json.loads(file.read_text())["candidates"]:
        config = astuple(TileConfig(*line["config"]))
        found.setdefault((line["kernel"], line["arithmetic"], line["width"]), {})[config] = line
    return found


def stale(file: Path) -> bool:
    """Whether a kernel has changed since the list was made."""
    return json.loads(file.read_text())["kernels"] != kernels_digest()


def to_try(key: Key, found: dict[Key, dict[Config, dict]], arch: int) -> list[Config]:
    """The usual configuration, the candidates of the key, and the usual configuration again: its two times give the spread."""
    usual = usual_config(key, arch)
    offered = CHUNKS if key[0].startswith("chunk") else found.get(key, {})
    offered = (*WIDE, *CHUNKS) if key[0] == "chunk cross" else offered
    offered = [*offered, ()] if base(key[0]) == "triangle" else offered
    return [usual, *(config for config in offered if config != usual), usual]
