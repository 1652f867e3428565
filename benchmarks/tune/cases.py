"""What the tuner times: launches of one kernel, with the merging that its splits cost, at the shapes that matter.

A key is (kernel, arithmetic, widest D), as in the tuned tables; " plain" behind a kernel means a launch without bias, int64 ids
and ranks, whose blocks of columns are whole. A candidate is a tile (block_m, block_n, warps, stages, programs); for chunks it is
(tall, log2 of logits), the arguments of ``chunk_shape``. Wide rows of CLIP, key "chunk cross", are computed in chunks or in tiles
that never store S, so there are candidates of both forms. The forward of NT-Xent has two kernels: under the key "triangle plain"
the triangular one is timed, with the square one as candidate (); under "fwd plain" the square one.

Imports nothing of ``benchmarks``.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels import sigmoid_pair, sigmoid_pair_chunked, similarity, similarity_chunked, similarity_cross, similarity_forward
from fastssl.kernels.host.device import device_properties
from fastssl.kernels.similarity_backward import row_owner
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig, chunk_shape, pick_config, pick_triangle, tuned_config
from fastssl.kernels.tiles.terms import Terms, row_terms
from fastssl.ops._operands import Similarity
from fastssl.testing.compare import FLOOR

Key = tuple[str, str, int]
Config = tuple[int, ...]
Outputs = dict[str, Tensor]
Call = Callable[[], Outputs]

HALVES = "16-bit"
SCALE = 10.0
USUAL_CHUNK = (2048, 23)
#: The entry of a tuned table which says that wide rows are computed in chunks.
NO_TILE = (0, 0, 0, 0)
#: The compiled function of each kernel, whose registers and shared memory decide.
FUNCTIONS = {
    "fwd": "similarity_fwd_kernel",
    "one_pass": "similarity_fwd_kernel",
    "bwd": "similarity_bwd_kernel",
    "cross": "similarity_cross_fwd_kernel",
    "triangle": "similarity_triangle_kernel",
    "sigmoid": "sigmoid_pair_kernel",
}
#: Largest relative difference from the result of the usual tile: both are sums of the same float32 terms, in another order.
EXACT = dict.fromkeys(("lse", "row", "column", "loss"), 2e-5)


def tolerance(output: str, dtype: torch.dtype) -> float:
    """The largest relative difference that an output may have."""
    return EXACT.get(output, FLOOR[dtype])


def rows_of(count: int, width: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """(count, width) unit rows."""
    generator = torch.Generator(device).manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, device=device), dim=1).to(dtype)


def _empty_rows(count: int, width: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    return torch.empty(count, width, dtype=dtype, device=device)


def without_contents():
    """A context in which cases are built from uninitialised rows, for launches that only compile."""
    return mock.patch(f"{__name__}.rows_of", _empty_rows)


def _ids(count: int, device: str) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def nt_xent_forward(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """The log-sum-exp of x (N, D) against itself; ids leave the positives out; M = N."""
    x, ids = rows_of(n, d, dtype, device, 0), _ids(n, device) % (n // 2)
    return lambda: {"lse": similarity.similarity_fwd(x, None, SCALE, None, ids, ids, None, None)[0]}


def nt_xent_backward(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """The gradient (N, D) of one sweep in which the rows are the columns too."""
    x, ids = rows_of(n, d, dtype, device, 0), _ids(n, device) % (n // 2)
    state = similarity.similarity_fwd(x, None, SCALE, None, ids, ids, None, None)[2]
    of_x, _, stats = row_terms(state, torch.full((n,), 1.0 / n, device=device), dtype)
    operands, terms = Similarity(x, x, SCALE, None, ids, ids), Terms(of_x, of_x, stats)

    def call() -> Outputs:
        dx = torch.empty_like(x)
        row_owner(operands, terms, dx, None, None)
        return {"dx": dx}

    return call


def clip_backward(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """The gradient of x (N, D) from rows and columns of the logits with y (M, D), with a learnt temperature."""
    x, y = rows_of(n, d, dtype, device, 0), rows_of(m, d, dtype, device, 1)
    factor = torch.ones(1, device=device)
    state = similarity_cross.similarity_cross_fwd(x, y, SCALE, factor, None, None, None, 0)[4]
    gradients = (torch.full((count,), 0.5 / count, device=device) for count in (n, m))
    terms = row_terms(state[:, :n], next(gradients), dtype, state[:, n:], next(gradients))
    operands = Similarity(x, y, SCALE, factor, None, None)

    def call() -> Outputs:
        dx, dots = torch.empty_like(x), torch.empty(n, device=device)
        row_owner(operands, terms, dx, None, dots)
        return {"dx": dx, "dots": dots}

    return call


def moco_one_pass(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """The one-pass forward of queries (N, D) against a queue that is stored as (D, M)."""
    x, queue = rows_of(n, d, dtype, device, 0), rows_of(m, d, dtype, device, 1).t().contiguous()

    def call() -> Outputs:
        lse, mean, _ = similarity.similarity_one_pass(x, queue.t(), SCALE, None, None, None, None, None)
        return {"lse": lse, "mean": mean}

    return call


def clip_forward(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """The forward of CLIP, rows and columns."""
    x, y = rows_of(n, d, dtype, device, 0), rows_of(m, d, dtype, device, 1)
    factor = torch.ones(1, device=device)

    def call() -> Outputs:
        row, column, *_ = similarity_cross.similarity_cross_fwd(x, y, SCALE, factor, None, None, None, 0)
        return {"row": row, "column": column}

    return call


def clip_both(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """Forward and both gradients of CLIP, since chunks share work between them."""
    x, y = rows_of(n, d, dtype, device, 0), rows_of(m, d, dtype, device, 1)
    factor = torch.ones(1, device=device)
    drow, dcolumn = (torch.full((count,), 0.5 / count, device=device) for count in (n, m))

    def call() -> Outputs:
        row, column, _, kept, *states = similarity_cross.similarity_cross_fwd(x, y, SCALE, factor, None, None, None, 0)
        dx, dy, _ = similarity_cross.similarity_cross_bwd(
            drow, dcolumn, *states, kept, x, y, SCALE, factor, None, None, (True, True, True)
        )
        return {"row": row, "column": column, "dx": dx, "dy": dy}

    return call


def siglip(n: int, m: int, d: int, dtype: torch.dtype, device: str) -> Call:
    """The loss and all four gradients of SigLIP."""
    x, y = rows_of(n, d, dtype, device, 0), rows_of(m, d, dtype, device, 1)
    factor, term = torch.ones(1, device=device), torch.zeros(1, device=device)
    x_id, y_id = _ids(n, device), _ids(m, device)

    def call() -> Outputs:
        loss, dx, dy, *_ = sigmoid_pair.sigmoid_pair(x, y, SCALE, factor, -10.0, term, x_id, y_id, None, None, (True,) * 4)
        return {"loss": loss, "dx": dx, "dy": dy}

    return call


@dataclass(frozen=True)
class Case:
    """A launch that is timed: a kernel, the loss that it belongs to, a shape, and ``build``, which makes the call."""

    kernel: str
    name: str
    shape: tuple[int, int, int]  # N, M, D
    build: Callable[..., Call]

    @property
    def key(self) -> Key:
        return self.kernel, HALVES, 128 if self.shape[2] <= 128 else 256 if self.shape[2] <= 256 else self.shape[2]

    @property
    def chunked(self) -> bool:
        return self.kernel.startswith("chunk")


def _square(kernel: str, name: str, build: Callable[..., Call], *sizes: tuple[int, int]) -> list[Case]:
    return [Case(kernel, name, (n, n, d), build) for n, d in sizes]


#: The most telling case of each key comes first.
CASES: tuple[Case, ...] = (
    *_square("fwd plain", "nt_xent", nt_xent_forward, (8192, 128), (65536, 128), (8192, 256), (32768, 256)),
    *_square("triangle plain", "nt_xent", nt_xent_forward, (8192, 128), (65536, 128), (8192, 256), (32768, 256)),
    *_square("bwd plain", "nt_xent", nt_xent_backward, (8192, 128), (65536, 128), (8192, 256), (32768, 256)),
    *_square("bwd plain", "clip", clip_backward, (16384, 128), (16384, 256)),
    *(Case("one_pass plain", "moco", (n, 65536, 128), moco_one_pass) for n in (1024, 4096, 256)),
    Case("one_pass plain", "moco", (1024, 65536, 256), moco_one_pass),
    *_square("cross plain", "clip", clip_forward, (16384, 128), (8192, 128), (16384, 256)),
    *_square("sigmoid", "siglip", siglip, (16384, 128), (4096, 128), (16384, 256)),
    *_square("chunk cross", "clip", clip_both, (16384, 512)),
    *_square("chunk sigmoid", "siglip", siglip, (16384, 768)),
)
#: The cases of the rehearsal: the interpreter computes each of them in a second.
TINY: tuple[Case, ...] = (
    *_square("fwd plain", "nt_xent", nt_xent_forward, (48, 16), (20, 16)),
    Case("one_pass", "moco", (16, 80, 16), moco_one_pass),
    *_square("chunk cross", "clip", clip_both, (8, 272)),
)


def base(kernel: str) -> str:
    """The kernel without its variant: "fwd" of "fwd plain"."""
    return kernel.partition(" ")[0]


def _only(kernel: str, tile: TileConfig, name: str, *about) -> TileConfig:
    return tile if base(name) == kernel else pick_config(name, *about)


def _wide_tile(tile: TileConfig):
    """A context in which ``similarity_wide`` takes this tile; its weights of two exponentials keep theirs."""
    return mock.patch.object(plan, "pick_config", lambda name, *rest: tile if name == "wide" else pick_config(name, *rest))


@contextmanager
def forced(kernel: str, config: Config) -> Iterator[None]:
    """A context in which all variants of ``kernel`` take this configuration; other kernels keep theirs."""
    if kernel.startswith("chunk"):
        with ExitStack() as stack:
            wide = len(config) > 2
            if kernel == "chunk cross":
                stack.enter_context(_wide_tile(TileConfig(*config) if wide else TileConfig(*NO_TILE)))
            if not wide:
                module = similarity_chunked if kernel == "chunk cross" else sigmoid_pair_chunked
                stack.enter_context(
                    mock.patch.object(module, "chunk_shape", partial(chunk_shape, tall=config[0], most=1 << config[1]))
                )
            yield
        return
    if base(kernel) == "triangle":
        with mock.patch.object(similarity_forward, "pick_triangle", lambda *_: TileConfig(*config) if config else None):
            yield
        return
    tile = TileConfig(*config)
    if kernel == "sigmoid":
        with mock.patch.object(sigmoid_pair, "tile_of", lambda *_: tile):
            yield
        return
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(plan, "pick_config", partial(_only, base(kernel), tile)))
        if base(kernel) == "fwd":
            stack.enter_context(mock.patch.object(similarity_forward, "pick_triangle", lambda *_: None))
        yield


def usual_config(key: Key, arch: int) -> Config:
    """The configuration that the library takes now."""
    kernel, _, width = key
    about = arch, torch.bfloat16, width
    if kernel == "chunk cross" and (tile := pick_config("wide", *about)).block_m:
        return astuple(tile)
    if kernel.startswith("chunk"):
        return USUAL_CHUNK
    if kernel == "sigmoid":
        tile = tuned_config("sigmoid", *about) or sigmoid_pair.tile_of(pick_config("bwd", *about), arch)
    elif kernel == "triangle plain":
        tile = pick_triangle(256, _ids(1, "cpu"), *about, "ieee")
    else:
        tile = pick_config(kernel, *about)
    return astuple(tile) if tile else ()


def architecture(device: str) -> tuple[int, int]:
    """(compute capability, number of SMs) that a process on this device launches for."""
    properties = device_properties(torch.device(device, 0) if device == "cuda" else torch.device(device))
    return properties.arch, properties.num_sms
