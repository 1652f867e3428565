"""Tiles, splits and chunks of the similarity kernels, as pure functions of shape, dtype and device.

Nothing in the table below was timed. Its tiles were chosen by arithmetic, and they compile without spilling, as
tests/without_gpu/test_compile.py proves. The tiles that ``benchmarks.tune`` measured on an architecture stand in ``tuned`` and take
precedence.
"""

import functools
from dataclasses import dataclass

import torch

from fastssl.kernels import tuned


@dataclass(frozen=True)
class TileConfig:
    block_m: int  # owned rows of a program
    block_n: int  # columns it streams at a time
    num_warps: int
    num_stages: int
    programs: int = 1  # programs on a multiprocessor at once; the registers of a thread are capped so that they fit
    specialised: bool = False  # whether ``similarity_hopper``, where it can, takes the symmetric backward with one exponential

    @property
    def max_registers(self) -> int | None:
        most = 65536 // (32 * self.num_warps * self.programs) // 8 * 8
        return most if self.programs > 1 and most < 255 else None  # no thread has more than 255


_HALVES, _TF32, _IEEE = "16-bit", "tf32", "ieee"

# (kernel, family, arithmetic, widest D) -> tile. A tile is limited by registers: acc (block_m, D) and S (block_m, block_n) are held
# there in float32, which takes 64 registers of each thread for each of the two at 128 x 128 with 8 warps; int64 ids of the columns,
# with l and g, take 4 more for each 8 of block_n. The families are 80 (163 KiB of shared memory), 90 and 100 (227 KiB), and 0 for
# anything else, where tiles stay under the 99 KiB of sm_86, sm_89 and sm_120.
_TABLE: dict[tuple[str, int, str, int], TileConfig] = {
    # forward: there is no accumulator, so S may be 128 x 128. Three stages hide the loads; at D = 256 they take 160 KiB with half
    # the columns.
    ("fwd", 90, _HALVES, 128): TileConfig(128, 128, 8, 3),
    ("fwd plain", 90, _HALVES, 128): TileConfig(128, 128, 8, 2, programs=2),
    ("fwd", 90, _HALVES, 256): TileConfig(128, 64, 8, 3),
    ("fwd plain", 90, _HALVES, 256): TileConfig(128, 32, 8, 2, programs=2),
    ("fwd", 100, _HALVES, 128): TileConfig(128, 64, 8, 2),  # 128 columns spill 32 bytes
    ("fwd", 100, _HALVES, 256): TileConfig(128, 64, 8, 2),
    ("fwd", 80, _HALVES, 128): TileConfig(128, 64, 4, 2),  # three stages spill 8 bytes where a queue is stored (D, M)
    ("fwd", 80, _HALVES, 256): TileConfig(64, 64, 4, 2),  # 128 rows with bias spill 8 bytes
    ("fwd", 0, _HALVES, 128): TileConfig(64, 64, 4, 2),
    ("fwd", 0, _HALVES, 256): TileConfig(64, 32, 4, 2),
    # kernels that count above a threshold, where the tile for kernels that do not count would spill 16 to 128 bytes.
    ("fwd rank", 80, _HALVES, 128): TileConfig(128, 64, 8, 3),
    ("one_pass rank", 90, _HALVES, 128): TileConfig(128, 32, 8, 3),  # on a queue stored (D, M) wider tiles wait after each wgmma
    ("one_pass rank", 90, _HALVES, 256): TileConfig(64, 32, 8, 3),
    ("one_pass rank", 80, _HALVES, 128): TileConfig(64, 64, 8, 2),
    # cross: columns are reduced across lanes and warps, and fewer warps with more rows each need fewer shuffles (in the machine
    # code of sm_90, 0.64 warp instructions for each element at 128 x 64 with 4 warps, 0.82 at 128 x 128 with 8, 0.40 in the
    # forward). On sm_100 a thread holds whole rows, so that every column costs it a register: 64 columns spill up to 136 bytes.
    ("cross", 90, _HALVES, 128): TileConfig(128, 64, 4, 3),
    ("cross", 90, _HALVES, 256): TileConfig(128, 64, 8, 3),
    ("cross plain", 90, _HALVES, 256): TileConfig(128, 32, 8, 2, programs=2),
    ("cross", 100, _HALVES, 128): TileConfig(128, 32, 8, 2),
    ("cross", 100, _HALVES, 256): TileConfig(128, 32, 8, 2),
    ("cross", 80, _HALVES, 128): TileConfig(128, 32, 4, 3),
    ("cross", 80, _HALVES, 256): TileConfig(64, 64, 8, 2),
    ("cross", 0, _HALVES, 128): TileConfig(64, 64, 8, 2),
    ("cross", 0, _HALVES, 256): TileConfig(64, 32, 4, 2),
    # triangle: as cross. With 256 rows a program reads half as many bytes of columns as with 128, but no register is left for int64
    # ids or for an incomplete last block of rows, nor, because of what ptxas makes of it, in a kernel without ids.
    ("triangle", 90, _HALVES, 128): TileConfig(128, 64, 4, 3),
    ("triangle plain", 90, _HALVES, 128): TileConfig(256, 64, 4, 2, programs=2),
    ("triangle", 90, _HALVES, 256): TileConfig(128, 64, 8, 2),
    ("triangle plain", 90, _HALVES, 256): TileConfig(128, 32, 8, 2, programs=2),
    ("triangle", 100, _HALVES, 128): TileConfig(128, 32, 8, 2),
    ("triangle", 100, _HALVES, 256): TileConfig(64, 64, 8, 2),  # 32 columns spill up to 88 bytes
    ("triangle", 80, _HALVES, 128): TileConfig(128, 32, 8, 3),
    ("triangle", 80, _HALVES, 256): TileConfig(64, 64, 8, 2),
    ("triangle", 0, _HALVES, 128): TileConfig(64, 64, 4, 2),  # 8 warps spill 40 bytes under 128 registers
    ("triangle", 0, _HALVES, 256): TileConfig(64, 32, 4, 2),
    ("triangle plain", 0, _HALVES, 256): TileConfig(32, 32, 4, 2),  # 64 rows spill 8 bytes under 168 registers
    # one-pass: acc and p are held at the same time; 128 columns spill 56 bytes with ids and bias.
    ("one_pass", 90, _HALVES, 128): TileConfig(128, 64, 8, 3),
    ("one_pass", 90, _HALVES, 256): TileConfig(128, 32, 8, 3),
    ("one_pass plain", 90, _HALVES, 128): TileConfig(64, 64, 4, 3, programs=2),
    ("one_pass plain", 90, _HALVES, 256): TileConfig(64, 32, 4, 2, programs=2),
    ("one_pass", 100, _HALVES, 128): TileConfig(128, 64, 8, 2),
    ("one_pass", 100, _HALVES, 256): TileConfig(64, 32, 8, 2),  # 64 columns spill 8 bytes, 128 rows 136
    ("one_pass", 80, _HALVES, 128): TileConfig(128, 64, 8, 2),
    ("one_pass", 80, _HALVES, 256): TileConfig(64, 64, 8, 2),
    ("one_pass", 0, _HALVES, 128): TileConfig(64, 32, 4, 2),
    ("one_pass", 0, _HALVES, 256): TileConfig(64, 32, 8, 2),
    # backward: acc and S are held at the same time; 128 x 64 takes 204 to 246 registers on sm_90.
    ("bwd", 90, _HALVES, 128): TileConfig(128, 64, 8, 3),
    ("bwd", 90, _HALVES, 256): TileConfig(128, 32, 8, 2),
    ("bwd plain", 90, _HALVES, 128): TileConfig(64, 64, 4, 3, programs=2),
    ("bwd plain", 90, _HALVES, 256): TileConfig(64, 32, 4, 2, programs=2),
    ("bwd", 100, _HALVES, 128): TileConfig(128, 32, 8, 2),  # 64 columns spill 8 bytes with ids and bias
    ("bwd", 100, _HALVES, 256): TileConfig(64, 64, 8, 2),  # 128 rows spill 48 bytes where they write partial results
    ("bwd", 80, _HALVES, 128): TileConfig(128, 32, 8, 3),
    ("bwd", 80, _HALVES, 256): TileConfig(64, 32, 8, 2),
    ("bwd", 0, _HALVES, 128): TileConfig(64, 32, 8, 2),
    ("bwd", 0, _HALVES, 256): TileConfig(32, 32, 4, 2),  # ptxas gives 8 warps 128 registers here and spills 8 bytes
    # wide: D > 256, in slices of 64. "wide" is the forward and the weights with one exponential, "wide two" the weights with two.
    # 128 x 256 reads least out of L2. Where a tuned table holds a tile of 0 rows, ``similarity_chunked`` serves instead.
    ("wide", 90, _HALVES, 256): TileConfig(128, 256, 8, 3),
    **{("wide", family, _HALVES, 256): TileConfig(128, 128, 8, 3) for family in (80, 100, 0)},
    **{("wide two", family, _HALVES, 256): TileConfig(128, 64, 8, 3) for family in (80, 90, 100, 0)},  # 256 spill 256 bytes
    # float32 tiles end at D = 128. tf32: twice the bytes of 16 bits, and Hopper needs the second operand transposed in registers.
    **{("fwd", family, _TF32, 128): TileConfig(64, 64, 8, 2) for family in (80, 90, 100)},
    **{("one_pass", family, _TF32, 128): TileConfig(64, 32, 8, 2) for family in (80, 90)},
    **{("bwd", family, _TF32, 128): TileConfig(64, 32, 8, 2) for family in (80, 90)},
    ("one_pass", 100, _TF32, 128): TileConfig(64, 32, 4, 2),  # 8 warps leave 8 bytes on the stack; 4 warps do so with a rank
    ("one_pass rank", 100, _TF32, 128): TileConfig(64, 32, 8, 2),
    ("bwd", 100, _TF32, 128): TileConfig(64, 32, 4, 2),
    **{("cross", family, _TF32, 128): TileConfig(64, 64, 8, 2) for family in (80, 90)},
    ("cross", 100, _TF32, 128): TileConfig(64, 32, 8, 2),
    **{("triangle", family, _TF32, 128): TileConfig(64, 32, 8, 2) for family in (80, 90)},
    ("triangle", 100, _TF32, 128): TileConfig(64, 64, 8, 2),
    ("triangle", 0, _TF32, 128): TileConfig(32, 32, 8, 2),
    ("fwd", 0, _TF32, 128): TileConfig(32, 32, 4, 2),
    ("cross", 0, _TF32, 128): TileConfig(32, 32, 8, 2),
    ("one_pass", 0, _TF32, 128): TileConfig(32, 32, 4, 2),
    ("bwd", 0, _TF32, 128): TileConfig(32, 16, 4, 2),  # 32 columns spill 8 bytes
    # ieee: no matrix unit serves; Triton unrolls the whole product into registers, and 64 rows or 32 columns would spill kilobytes.
    **{("fwd", family, _IEEE, 128): TileConfig(32, 32, 8, 2) for family in (80, 90, 100, 0)},
    **{("cross", family, _IEEE, 128): TileConfig(32, 32, 8, 2) for family in (80, 90, 100)},
    ("cross", 0, _IEEE, 128): TileConfig(32, 32, 4, 2),  # ptxas gives 8 warps 64 registers here and spills 8 bytes
    **{("one_pass", family, _IEEE, 128): TileConfig(32, 16, 8, 2) for family in (80, 90, 100, 0)},
    ("bwd", 90, _IEEE, 128): TileConfig(32, 16, 8, 2),
    **{("bwd", family, _IEEE, 128): TileConfig(32, 16, 4, 2) for family in (80, 100)},  # 8 warps leave 8 to 24 bytes on the stack
    ("bwd", 0, _IEEE, 128): TileConfig(16, 16, 4, 2),
}


def _family(arch: int) -> int:
    return 80 if arch == 80 else arch // 10 * 10 if arch // 10 in (9, 10) else 0


def _tuned_configs() -> list[tuple[str, int, str, int, TileConfig]]:
    tables = [(arch, tuned.table("similarity", arch)) for arch in tuned.architectures("similarity")]
    return [
        (kernel, _family(arch), arithmetic, width, TileConfig(*numbers))
        for arch, table in tables
        for (kernel, arithmetic, width), numbers in table.items()
        if numbers
    ]


#: Every configuration that ``pick_config`` can return, with its key; the measured ones come last.
ALL_CONFIGS = (*((*key, config) for key, config in _TABLE.items()), *_tuned_configs())

WIDEST = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 128}

# Above this many logits (16 MB of float32) the vendor's SGEMM on chunks beats an ieee product without matrix units.
_IEEE_TILE_LOGITS = 1 << 22


def float32_precision() -> str:
    """Triton's input_precision for float32, as torch is set for products on a GPU; with "ieee" no operand is rounded.

    The setting that is read here also follows ``torch.set_float32_matmul_precision`` and ``allow_tf32``. The getters of those older
    names are not used, since they raise an error where this setting was changed directly.
    """
    return _TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else _IEEE


def tile_fits(rows: int, columns: int, width: int, dtype: torch.dtype, precision: str) -> bool:
    """Whether the tile kernels serve this shape; otherwise the vendor's products do, in chunks."""
    slow = dtype == torch.float32 and precision == _IEEE and rows * columns > _IEEE_TILE_LOGITS
    return width <= WIDEST[dtype] and not slow


def _use(dtype: torch.dtype, width: int, precision: str) -> tuple[str, int]:
    """(arithmetic, widest D) of a key."""
    return precision if dtype == torch.float32 else _HALVES, 128 if width <= 128 else 256


@functools.lru_cache(maxsize=256)
def tuned_config(kernel: str, arch: int, dtype: torch.dtype, width: int, precision: str = _IEEE) -> TileConfig | None:
    """The tile that was measured on this architecture, or None. The arguments are those of ``pick_config``; kernel may also be
    "sigmoid"."""
    found = tuned.table("similarity", arch).get((kernel, *_use(dtype, width, precision)))
    return TileConfig(*found) if found else None


@functools.lru_cache(maxsize=256)
def pick_config(kernel: str, arch: int, dtype: torch.dtype, width: int, precision: str = _IEEE) -> TileConfig:
    """The tile of a kernel: "fwd", "one_pass", "cross", "triangle", "bwd" or "wide". " plain" behind the name says that most tiles
    need nothing but dots, " rank" that logits are counted. ``arch`` is the compute capability, 90 for example; ``precision``
    matters for float32 only. A measured tile takes precedence over the table's, and the tile of a special case over that of the
    kernel."""
    key = _family(arch), *_use(dtype, width, precision)
    for name in (kernel, kernel.partition(" ")[0]):
        if found := tuned_config(name, arch, dtype, width, precision) or _TABLE.get((name, *key)):
            return found
    raise KeyError((kernel, *key))


@functools.lru_cache(maxsize=256)
def _measured_slower(kernel: str, arch: int, dtype: torch.dtype, width: int, precision: str) -> bool:
    return tuned.table("similarity", arch).get((kernel, *_use(dtype, width, precision))) == ()


def pick_triangle(
    rows: int, ids: torch.Tensor | None, arch: int, dtype: torch.dtype, width: int, precision: str
) -> TileConfig | None:
    """The tile of the triangular forward, or None where the forward of any two sides serves instead: in "ieee", whose tiles take no
    problem of that size, and where a tuned table holds () for the kernel."""
    plain = rows % 256 == 0 and ids is not None and ids.element_size() == 4
    kernel = "triangle" + " plain" * plain
    if (dtype == torch.float32 and precision == _IEEE) or _measured_slower(kernel, arch, dtype, width, precision):
        return None
    return pick_config(kernel, arch, dtype, width, precision)


@functools.lru_cache(maxsize=1024)
def pick_groups(rows: int, columns: int, config: TileConfig, num_sms: int) -> tuple[int, int, int, int]:
    """(groups, rows of each, splits, columns of each) of a sweep that keeps column partials (groups, columns). Of the choices with
    at most 32 groups it takes the one of least time, counted as in ``pick_splits``, and of equal ones that with fewest programs."""
    slots = num_sms * max(config.programs, 8 // config.num_warps)
    blocks, tiles = -(-rows // config.block_m), -(-columns // config.block_n)
    best = None
    for high in {-(-blocks // wanted) for wanted in range(1, min(blocks, 32) + 1)}:
        groups = -(-blocks // high)
        for length in {-(-tiles // wanted) for wanted in range(1, min(tiles, max(1, 8 * slots // groups)) + 1)}:
            programs = groups * -(-tiles // length)
            cost = (-(-programs // slots) * (high * length + 3), programs, high, length)
            best = cost if best is None else min(best, cost)
    assert best is not None, "no rows"
    high, length = best[2:]
    return -(-blocks // high), high * config.block_m, -(-tiles // length), length * config.block_n


@functools.lru_cache(maxsize=1024)
def pick_splits(rows: int, columns: int, config: TileConfig, num_sms: int) -> tuple[int, int]:
    """(number of splits, columns of each): the fewest splits whose time, counted in tiles, is within 5 % of the least.

    The time is the number of waves of programs, times the tiles of a split, to which 3 are added for writing and merging partials
    where there are several splits. Registers allow 8 warps on a multiprocessor at once. For example, 256 rows and 65,536 columns
    make 64 splits, which fill 128 of 132 multiprocessors; 65,536 rows make one split.
    """
    slots = num_sms * max(config.programs, 8 // config.num_warps)
    blocks, tiles = -(-rows // config.block_m), -(-columns // config.block_n)
    costs: dict[int, tuple[int, int]] = {}  # splits -> time, length
    for wanted in range(1, min(tiles, max(1, 8 * slots // blocks)) + 1):
        length = -(-tiles // wanted)
        splits = -(-tiles // length)
        costs.setdefault(splits, (-(-blocks * splits // slots) * (length + (3 if splits > 1 else 0)), length))
    least = min(cost for cost, _ in costs.values())
    splits = min(splits for splits, (cost, _) in costs.items() if cost <= 1.05 * least)
    return splits, costs[splits][1] * config.block_n


def chunk_shape(rows: int, columns: int, tall: int = 2048, most: int = 1 << 23) -> tuple[int, int]:
    """(R, C) of a chunk of S, of at most 32 MB (4 R C), so that it stays in an L2 of 40 to 60 MB. A chunk has up to 2,048 rows and
    then as many columns as fit, since each chunk adds (R + C) D float32 sums. With few columns it has more rows, at most 2^20,
    because the second dimension of a grid, which counts blocks of 32 rows, ends at 65,535. The tuner varies ``tall``, a number of
    rows, and ``most``, a number of logits."""
    r = min(rows, tall)
    c = min(columns, max(1024, most // r // 1024 * 1024))
    return min(rows, max(r, most // c // 1024 * 1024), 1 << 20), c


def w_shape(rows: int, columns: int, most: int = 1 << 27) -> tuple[int, int]:
    """(R, C) of a chunk of 16-bit weights, of at most 256 MB (2 R C) and as square as that allows, because each chunk adds
    (R + C) D float32 sums to those before."""
    r = min(rows, max(16384, most // columns // 256 * 256))
    return r, min(columns, max(256, most // r // 256 * 256))


@functools.lru_cache(maxsize=1024)
def pick_parts(rows: int, config: TileConfig, num_sms: int) -> tuple[int, int]:
    """(parts, rows of each) of a triangular sweep, in which each pair of parts is a program. Of the choices with at most 32 parts
    it takes the one of least time, counted as in ``pick_splits``. 32 parts make 528 pairs, which are two waves of 264 programs on
    132 multiprocessors."""
    slots = num_sms * max(config.programs, 8 // config.num_warps)
    step = max(config.block_m, config.block_n)
    blocks, best = -(-rows // step), None
    for high in {-(-blocks // wanted) for wanted in range(1, min(blocks, 32) + 1)}:
        parts = -(-blocks // high)
        programs = parts * (parts + 1) // 2
        tiles = high * step // config.block_m * (high * step // config.block_n + 3)
        cost = (-(-programs // slots) * tiles, programs, parts, high * step)
        best = cost if best is None else min(best, cost)
    assert best is not None, "no rows"
    return best[2:]
