"""The Triton kernels of ``sinkhorn`` in Triton's interpreter. Run with TRITON_INTERPRET=1; ``python -m tests.races`` in ttsem."""

import pytest
import torch

import fastssl.loss.sinkhorn as loss
from fastssl.functional import sinkhorn
from fastssl.kernels import sinkhorn as kernels
from fastssl.kernels import soft_rows
from fastssl.kernels.soft_rows import RowTile
from fastssl.ops._register import launcher
from fastssl.reference import sinkhorn as reference
from fastssl.testing.compare import assert_no_worse

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
T = torch.tensor([0.05])
SHIPPED = soft_rows.row_tile, kernels.lanes_of, kernels.rows_of_a_part


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Blocks of 16 columns and, of the column kernel, parts of at most 8 rows."""

    def use(row_tile, lanes_of, rows_of_a_part):
        monkeypatch.setattr(soft_rows, "row_tile", row_tile)
        monkeypatch.setattr(kernels, "lanes_of", lanes_of)
        monkeypatch.setattr(kernels, "rows_of_a_part", rows_of_a_part)

    few = lambda members, *_: min(8, -(-members // 4) * 4)  # noqa: E731
    use(lambda rows, *_: RowTile(rows, 4, 4, 1), lambda width, columns: 16 // columns, few)
    return use


def logits(rows, k=20, dtype=F32, size=2.0):
    return (size * torch.randn(rows, k, generator=torch.Generator().manual_seed(rows))).to(dtype)


def check(x, inner=1, groups=1, heads=None):
    """Start, and a step from the potential that the start gives."""
    start, eager, truth = kernels.sinkhorn_start(x, T, inner, groups), *(
        reference.sinkhorn_start(t, temperature, inner, groups) for t, temperature in ((x, T), (x.double(), T.double()))
    )  # fmt: skip
    potential = -(truth[0] + T.double() * truth[1].log()).float()
    heads = heads or [x.shape[1]]
    step = kernels.sinkhorn_step(x, potential, T, heads, inner)
    plain = reference.sinkhorn_step(x, potential, T, heads, inner)
    true = reference.sinkhorn_step(x.double(), potential.double(), T.double(), heads, inner)
    for name, *three in zip(("top", "sum", "step"), (*start, step), (*eager, plain), (*truth, true), strict=True):
        assert three[0].shape == three[1].shape and three[0].dtype == F32, name
        assert_no_worse(name, *three, F32)
    return *start, step


@pytest.mark.parametrize("rows, inner, groups", [(19, 1, 1), (1, 1, 1), (12, 1, 3), (12, 2, 2), (12, 6, 2)])
def test_groups_of_rows(rows, inner, groups):
    check(logits(rows), inner, groups)


@pytest.mark.parametrize("heads", [[1, 3, 16], [12, 8]], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_heads(heads, groups):
    check(logits(9), 1, groups, heads)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("k", [20, 32])
def test_half(dtype, k):
    check(logits(9, k, dtype))


@pytest.mark.parametrize("size", [100.0, 1e-4])
def test_large_and_small_logits(size):
    check(logits(10, size=size))


def test_logits_of_minus_infinity():
    """A prototype without a logit has the largest -inf and the sum 0; a row of nothing else adds nothing."""
    x = logits(10)
    x = x.masked_fill(logits(10, size=1.0).roll(1) < -1.0, -torch.inf)
    x[:, 3] = -torch.inf
    top, total = kernels.sinkhorn_start(x, T, 1, 1)
    want = reference.sinkhorn_start(x, T, 1, 1)
    assert torch.equal(top, want[0]) and torch.allclose(total, want[1]) and top[0, 3] == -torch.inf and total[0, 3] == 0
    x[7] = -torch.inf
    others = torch.cat([x[:7], x[8:]])
    potential = logits(1)
    step, without = (kernels.sinkhorn_step(rows, potential, T, [20], 1) for rows in (x, others))
    assert torch.allclose(step, without) and torch.allclose(step, reference.sinkhorn_step(others, potential, T, [20], 1))


def test_not_a_number_is_not_hidden():
    x = logits(10)
    x[4, 2] = torch.nan
    assert kernels.sinkhorn_start(x, T, 1, 1)[1].isnan().nonzero().tolist() == [[0, 2]]
    assert kernels.sinkhorn_step(x, logits(1), T, [20], 1).isnan().all()


def test_no_rows_and_strided_rows():
    empty = logits(0)
    for got, want in zip(kernels.sinkhorn_start(empty, T, 1, 2), reference.sinkhorn_start(empty, T, 1, 2), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(kernels.sinkhorn_step(empty, logits(2), T, [20], 1), torch.zeros(2, 20))
    x = logits(10)
    for moved in (torch.nn.functional.pad(x, (0, 5))[:, :20], x.t().contiguous().t()):
        assert all(map(torch.equal, check(moved), check(x)))


def test_same_bits_twice():
    assert all(map(torch.equal, check(logits(17)), check(logits(17))))


@pytest.mark.parametrize("rows, k", [(21, 300), (9, 1)])
def test_shipped_tiles(tiles, rows, k):
    tiles(*SHIPPED)
    check(logits(rows, k, BF16))
    check(logits(rows, k))


def test_float64_falls_back_to_the_reference():
    x = logits(6).double()
    ours = launcher("sinkhorn", "sinkhorn_start")(x, T.double(), 1, 1)
    assert all(map(torch.equal, ours, reference.sinkhorn_start(x, T.double(), 1, 1)))


@pytest.mark.parametrize("how", [{}, {"separate": 0}, {"heads": [12, 8]}], ids=str)
def test_public_function(monkeypatch, how):
    x = logits(12).view(2, 6, 20)

    def run(module, wanted):
        for name in ("sinkhorn_start", "sinkhorn_step"):
            monkeypatch.setattr(loss, name, getattr(module, name))
        return sinkhorn(x.to(wanted), 0.05, 3, **how)

    assert_no_worse("potential", run(kernels, F32), run(reference, F32), run(reference, torch.float64), F32)
