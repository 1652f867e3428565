"""Faults to plant into the Triton kernels. ttsem must name each of them (``planted.py``).

The source of one module is changed in one place, written to a temporary file and loaded under another name. ``call`` then runs the
module's launcher at sizes that are not a multiple of a tile.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from fastssl import kernels
from fastssl.kernels.sigmoid_pair_terms import Sums
from fastssl.kernels.soft_rows import RowTile
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig
from fastssl.kernels.tiles.merge import Results
from fastssl.kernels.tiles.terms import row_terms
from fastssl.ops._operands import SigmoidPair, Similarity, SimilarityArguments


def changed(name: str, old: str, new: str) -> str:
    """The source of a module of ``fastssl.kernels``, "tiles.merge" for example, with ``new`` in the one place of ``old``."""
    source = (Path(kernels.__file__).parent / f"{name.replace('.', '/')}.py").read_text()
    assert source.count(old) == 1, f"{name} has {source.count(old)} places like {old!r}: plant the fault elsewhere"
    return source.replace(old, new)


def plant(monkeypatch, folder: Path, name: str, old: str, new: str) -> ModuleType:
    """The ``changed`` source as a module. It has a file of its own, since Triton reads the source from the file."""
    *folders, name = name.split(".")
    path = folder / f"{name}.py"
    path.write_text(changed(".".join((*folders, name)), old, new))
    spec = importlib.util.spec_from_file_location(".".join(("fastssl.kernels", *folders, f"planted_{name}")), path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def _rows(n: int, d: int) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(n)), dim=1)


OPERANDS = Similarity(_rows(40, 16), _rows(50, 16), 10.0, None, None, None)


def _small_tiles(monkeypatch) -> None:
    """Makes launches take two blocks of rows and two splits of columns."""
    monkeypatch.setattr(plan, "pick_config", lambda *args: TileConfig(32, 16, 4, 2))
    monkeypatch.setattr(plan, "pick_splits", lambda rows, columns, *args: (2, 32))


def _forward(monkeypatch, forward: ModuleType):
    _small_tiles(monkeypatch)
    return forward.forward(SimilarityArguments(*OPERANDS), False)


def _whole_forward(monkeypatch, forward: ModuleType):
    monkeypatch.setattr(plan, "pick_config", lambda *args: TileConfig(32, 16, 4, 2))
    monkeypatch.setattr(plan, "pick_splits", lambda rows, columns, *args: (1, 64))
    return forward.forward(SimilarityArguments(*OPERANDS), False)


def _backward(monkeypatch, backward: ModuleType):
    _small_tiles(monkeypatch)
    x, y = OPERANDS.x, OPERANDS.y
    state = torch.stack([torch.zeros(40), (10.0 * x @ y.T).exp().sum(1)])  # base 2 does not matter here
    dx = torch.empty_like(x)
    backward.row_owner(OPERANDS, row_terms(state, torch.ones(40), x.dtype), dx, None, None)
    return dx


def normalize_pair(monkeypatch, module: ModuleType):
    return module.normalize_pair_fwd(torch.randn(140, 3), torch.randn(140, 3), 1e-12)


def softplus(monkeypatch, module: ModuleType):
    return module.softplus_sum_bwd(torch.ones(()), torch.randn(1200), torch.randn(600), 3.0, True)


def _latents(monkeypatch, module: ModuleType):
    pred, target = torch.randn(3, 5, 24), torch.randn(3, 4, 24)
    ids = torch.tensor([[0, 1, 2, 3, 400]] * 3)  # the last one names no token
    return module.masked_latent_one_pass(pred, target, ids, None, "l1", 1.0, True, 1e-5, True)


def _neighbours(monkeypatch, module: ModuleType):
    x = torch.randn(5, 24)
    ids = torch.tensor([[1], [0], [1], [4], [700]])  # the last one names no row
    distance = module.koleo_fwd(x, ids, 1e-3)[1]
    return module.koleo_bwd(torch.ones(5, 1), x, ids, distance, torch.ones(5), 1e-3, 5, torch.float32)


def _sampled(monkeypatch, module: ModuleType):
    """Five queries, a table of four rows; the last entry of the last query names none of them."""
    index = torch.arange(20).view(5, 4) % 4
    index[4, 3] = 900
    given = torch.randn(5, 24), torch.randn(4, 24), index, torch.tensor(10.0)
    _, _, lse, cosines, dquery = module.sampled_info_nce_fwd(*given, 1e-8, True)
    return module.sampled_info_nce_bwd(torch.ones(5), *given, lse, cosines, 1e-8), dquery


def _words(monkeypatch, module: ModuleType):
    """Five pairs over six words; the last target is no row, and the row 5 is that of no id."""
    tables, given = torch.randn(2, 6, 24), torch.arange(10).view(5, 2) % 5
    targets = torch.arange(15).view(5, 3) % 5
    targets[4, 2] = 700
    loss, h, _, slope = module.word_pairs_fwd(*tables, given, targets)
    return module.word_pairs_table(h, slope, torch.ones(5), targets, 6, torch.float32), loss


def _adam(monkeypatch, module: ModuleType):
    table = torch.zeros(3, 6, 24)
    module.sparse_adam_(*table, torch.tensor([1, 2, 5]), torch.ones(3, 24), 0.1, 0.9, 0.99, 1e-8)
    return table


def _chunks(monkeypatch, chunked: ModuleType):
    n, ids = 5, torch.arange(5)
    new = lambda *shape: torch.empty(*shape)  # noqa: E731
    results = Results(new(n), new(2, n), torch.empty(n, dtype=torch.int32), None, torch.empty(0, dtype=torch.int32))
    chunked.forward(Similarity(_rows(n, 260), _rows(n, 260), 10.0, None, ids, ids), results)
    return results


def _row_bounds(monkeypatch, bounds: ModuleType):
    return bounds.row_bounds(_rows(21, 16), torch.arange(21), 4, True)


def _sigmoid_chunks(monkeypatch, chunked: ModuleType):
    monkeypatch.setattr(chunked, "_SPAN", 32)
    pair = SigmoidPair(_rows(9, 260), _rows(40, 260), 10.0, None, -5.0, None, torch.arange(9), torch.arange(40), None, None)
    loss, dbias = torch.empty(()), torch.empty(())
    chunked.sweep(pair, None, None, None, Sums(loss, dbias, None))
    return loss, dbias


def _targets(monkeypatch, module: ModuleType):
    """Five rows of 37 columns, in splits of two blocks or fewer."""
    monkeypatch.setattr(module, "_fills", lambda *_: False)
    monkeypatch.setattr(module, "row_tile", lambda rows, *_: RowTile(rows, 4, 2, 1))
    gen = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 37, generator=gen)
    return module.soft_cross_entropy_fwd(student, teacher, teacher[:1], None, torch.ones(2), [37], 5, 1, False, False, True)


def _columns(monkeypatch, module: ModuleType):
    monkeypatch.setattr(module, "rows_of_a_part", lambda *_: 8)
    return module.sinkhorn_start(torch.randn(19, 40), torch.ones(1), 1, 1)


class Fault(NamedTuple):
    module: str
    call: Callable
    old: str
    new: str
    kind: str
    kernel: str
    line: str  # part of the kernel's line that the message quotes


#: A fault of another kind: every access is within bounds, but the last values are never written.
SHORT_GRID = "normalize", "normalize_pair_fwd_kernel, grid, a,", "normalize_pair_fwd_kernel, (grid[0] - 1,), a,"
FAULTS = {
    "a store without its mask": Fault(
        "similarity_forward", _whole_forward, "tl.store(sum_ptr + at, total, mask=inside)", "tl.store(sum_ptr + at, total)",
        "oob_write", "similarity_fwd_kernel", "tl.store(sum_ptr + at, total)",
    ),
    "a store without its mask, into another result behind it": Fault(
        "similarity_forward", _whole_forward, "tl.store(top_ptr + at, top, mask=inside)", "tl.store(top_ptr + at, top)",
        "race", "similarity_fwd_kernel", "tl.store(top_ptr + at, top)",
    ),
    "a load without its mask": Fault(
        "softplus_sum", softplus, "tl.load(positive_ptr + columns, mask=inside, other=0.0)", "tl.load(positive_ptr + columns)",
        "oob_read", "softplus_sum_bwd_kernel", "tl.load(positive_ptr + columns)",
    ),
    "a load whose mask forgets the rows": Fault(
        "normalize", normalize_pair, "mask = inside[:, None] & (dims[None, :] < D)",
        "mask = (rows >= 0)[:, None] & (dims[None, :] < D)",
        "oob_read", "normalize_pair_fwd_kernel", "tl.load(ptr + rows[:, None] * stride",
    ),
    "a tile that says it is whole": Fault(
        "similarity_forward", _forward, "EVEN_M=m % config.block_n == 0", "EVEN_M=True",
        "oob_read", "similarity_fwd_kernel", "return tl.load(tile)",
    ),
    "splits that store to the same place": Fault(
        "similarity_forward", _forward, "split.to(tl.int64) * N\n", "0 * split.to(tl.int64) * N\n",
        "race", "similarity_fwd_kernel", "mask=inside)",
    ),
    "splits of a gradient that store to the same place": Fault(
        "similarity_backward", _backward, "at = split.to(tl.int64) * NA + rows", "at = 0 * split.to(tl.int64) * NA + rows",
        "race", "similarity_bwd_kernel", "tl.store(out_ptr + at",
    ),
    "programs that add to the same place": Fault(
        "sigmoid_pair_chunked", _sigmoid_chunks, "at = tl.program_id(1).to(tl.int64) * stride + row", "at = row",
        "race", "sigmoid_chunk_kernel", "_ptr + at) + tl.sum(",
    ),
    "splits of a row that store their losses to the same place": Fault(
        "soft_cross_entropy", _targets, "(slot + split).to(tl.int64) * N + rows", "(slot + 0 * split).to(tl.int64) * N + rows",
        "race", "soft_cross_entropy_kernel", "tl.store(loss_ptr",
    ),
    "a gradient whose last columns have no mask": Fault(
        "soft_cross_entropy", _targets, "mask=of_rows(inside) & (columns < hi))", "mask=of_rows(inside))",
        "oob_write", "soft_cross_entropy_kernel", "tl.store(gradient_ptr + at",
    ),
    "parts of rows that store to the same place": Fault(
        "sinkhorn", _columns, "(tl.program_id(1).to(tl.int64) * groups + group)", "(0 * tl.program_id(1).to(tl.int64) + group)",
        "race", "columns_kernel", "tl.store(",
    ),
    "an id that names no token": Fault(
        "masked_latent", _latents, "read = inside & (ids >= 0) & (ids < L)", "read = inside & (ids >= 0)",
        "oob_read", "masked_latent_kernel", "tl.load(ptr + places",
    ),
    "a gradient whose last rows have no mask": Fault(
        "masked_latent", _latents, "mask=inside[:, None] & there)", "mask=there)",
        "oob_write", "masked_latent_kernel", "tl.store(dpred_ptr",
    ),
    "a neighbour that is no row": Fault(
        "koleo", _neighbours, "known = (ids >= 0) & (ids < M)", "known = ids >= 0",
        "oob_read", "koleo_fwd_kernel", "tl.load(ptr + places",
    ),
    "a grid with one row too many": Fault(
        "koleo", _neighbours, "koleo_bwd_kernel, (count,)", "koleo_bwd_kernel, (count + 1,)",
        "oob_read", "koleo_bwd_kernel", "tl.load(x_ptr + row",
    ),
    "a sampled row that is none": Fault(
        "sampled_info_nce", _sampled, "read = known & (entries < E)", "read = entries < E",
        "oob_read", "sampled_info_nce_fwd_kernel", "tl.load(ptr + rows",
    ),
    "a gradient of one sampled row too many": Fault(
        "sampled_info_nce", _sampled, "combine_kernel, (len(keys), ", "combine_kernel, (len(keys) + 1, ",
        "oob_read", "sampled_info_nce_combine_kernel", "tl.load(start_ptr + r",
    ),
    "a word that is no row": Fault(
        "word_pairs", _words, "mask=(dims < D) & (id >= 0) & (id < rows)", "mask=(dims < D) & (id >= 0)",
        "oob_read", "word_pairs_fwd_kernel", "tl.load(table_ptr + id",
    ),
    "a gradient of one word too many": Fault(
        "word_pairs", _words, "word_pairs_sums_kernel, (len(out), ", "word_pairs_sums_kernel, (len(out) + 1, ",
        "oob_read", "word_pairs_sums_kernel", "tl.load(begin_ptr + r + 1)",
    ),
    "a row of Adam without its mask": Fault(
        "sparse_adam", _adam, "rows = tl.load(row_ptr + places, mask=inside, other=0)", "rows = tl.load(row_ptr + places)",
        "oob_read", "sparse_adam_kernel", "tl.load(row_ptr + places)",
    ),
    "a grid with one program too many, which reads": Fault(
        "similarity_chunked", _chunks, "chunk_rows_kernel[(s.shape[0],)]", "chunk_rows_kernel[(s.shape[0] + 1,)]",
        "oob_read", "chunk_rows_kernel", "tl.load(x_id_ptr + row)",
    ),
    "a grid with one program too many, which writes": Fault(
        "tiles.row_bounds", _row_bounds, "row_bounds_kernel, (tiles,)", "row_bounds_kernel, (tiles + 1,)",
        "oob_write", "row_bounds_kernel", "tl.store(range_ptr + 2 * tile",
    ),
}  # fmt: skip
