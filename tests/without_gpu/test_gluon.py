"""The Gluon kernel of the symmetric backward, run on the CPU with a thread for each of its groups of warps."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

import fastssl.kernels
from fastssl.kernels.tiles.config import TileConfig
from fastssl.kernels.tiles.terms import Terms
from fastssl.ops._operands import Similarity
from fastssl.testing.compare import relative_error
from tests.without_gpu.gluon_on_cpu import on_the_cpu

PATH = Path(fastssl.kernels.__file__).parent / "similarity_hopper.py"
LOG2E, SCALE = 1.4426950408889634, 5.0


def problem(na, nb, d, dtype, seed=0):
    """a, b, v of both, centre; ids are row numbers, so that each row meets its own column."""
    gen = torch.Generator().manual_seed(seed)
    a, b = (torch.nn.functional.normalize(torch.randn(n, d, generator=gen), dim=1).to(dtype) for n in (na, nb))
    v_a, v_b = (torch.rand(n, generator=gen) + 0.5 for n in (na, nb))
    return a, b, v_a, v_b


def truth(a, b, v_a, v_b, centre, factor, ids):
    s = a.double() @ b.double().T * (SCALE * LOG2E) - centre
    s = s.masked_fill(torch.eye(*s.shape, dtype=torch.bool), -torch.inf) if ids else s
    return (torch.exp2(s) * (v_a.double()[:, None] + v_b.double()[None, :])) @ b.double() * factor


def run(module, a, b, v_a, v_b, block_n=16, stages=2, splits=1, final=True, ids=True, narrow=1.0, factor=None):
    na, nb = len(a), len(b)
    length = -(-nb // block_n // splits) * block_n
    own, stream = (torch.stack([torch.full_like(v, torch.nan)] * 2 + [v]) for v in (v_a, v_b))
    out = torch.full((na, a.shape[1]) if final else (splits, na, a.shape[1]), torch.nan, dtype=a.dtype if final else torch.float32)
    x_id, y_id = torch.arange(na, dtype=torch.int32), torch.arange(nb, dtype=torch.int32)
    ranges = y_id.view(-1, block_n)[:, [0, -1]].long().contiguous()
    x_id, y_id, ranges = (x_id, y_id, ranges) if ids else (None, None, None)
    stats = torch.tensor([1.5, narrow, 0.25])
    operands, terms = Similarity(a, b, SCALE, factor, x_id, y_id), Terms(own, stream, stats)
    config = TileConfig(128, block_n, 8, stages, specialised=True)
    module.narrow_backward(operands, terms, ranges, out.view(-1, a.shape[1]), length, final, config)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("na", "nb", "d", "stages", "ids"), [(192, 192, 64, 2, True), (70, 80, 128, 3, False), (128, 16, 64, 3, True)]
)
def test_values(dtype, na, nb, d, stages, ids):
    a, b, v_a, v_b = problem(na, nb, d, dtype)
    with on_the_cpu(PATH, "fastssl.kernels", delays=1e-4) as module:
        got = run(module, a, b, v_a, v_b, stages=stages, ids=ids)
    assert relative_error(got, truth(a, b, v_a, v_b, 1.5, SCALE * 0.25, ids)) <= 2 * torch.finfo(dtype).eps


def test_splits_learned_scale_and_rows_with_a_stride():
    a, b, v_a, v_b = problem(100, 96, 64, torch.bfloat16)
    a = torch.cat([a, a], 1)[:, :64]
    with on_the_cpu(PATH, "fastssl.kernels") as module:
        got = run(module, a, b, v_a, v_b, splits=3, final=False, factor=torch.tensor([1.0]))
    assert got.shape == (3, 100, 64)
    assert relative_error(got.sum(0), truth(a, b, v_a, v_b, 1.5, 1.0, True)) <= 2**-8


def test_nothing_is_written_where_two_exponentials_are_asked_for():
    with on_the_cpu(PATH, "fastssl.kernels") as module:
        assert run(module, *problem(64, 32, 64, torch.bfloat16), narrow=0.0).isnan().all()


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("mbarrier.wait(empty.index(stage), ((turn // STAGES) & 1) ^ 1)", "pass"),
        ("mbarrier.wait(full.index(stage), (turn // STAGES) & 1)", "pass"),
        ("mask=(rows < stored)[:, None]", "mask=(rows < rows + 1)[:, None]"),
        ("mask=(rows < NA)[:, None]", "mask=(rows < rows + 1)[:, None]"),
        ("stage = turn % STAGES\n        cols", "stage = 0\n        cols"),
    ],
    ids=["loads without waiting", "multiplies without waiting", "stores beyond the rows", "loads beyond the rows", "one stage"],
)
def test_planted_faults_are_found(tmp_path, monkeypatch, line, instead):
    text = PATH.read_text()
    assert text.count(line) == 1
    (tmp_path / "planted.py").write_text(text.replace(line, instead))
    monkeypatch.setattr("tests.without_gpu.gluon_on_cpu.PATIENCE_S", 1.0)
    a, b, v_a, v_b = problem(70, 320, 64, torch.bfloat16)
    right = truth(a, b, v_a, v_b, 1.5, SCALE * 0.25, True)
    with on_the_cpu(tmp_path / "planted.py", "fastssl.kernels", delays=1e-3) as module:
        try:
            error = relative_error(run(module, a, b, v_a, v_b), right)
        except (AssertionError, TimeoutError, IndexError):
            return
    assert not error <= 2**-7
