"""The kernels of ``word_pairs`` and ``SparseAdam`` in Triton's interpreter, against float64 and plain PyTorch."""

import pytest
import torch

from fastssl.kernels import sparse_adam as adam_kernels
from fastssl.kernels import word_pairs as kernels
from fastssl.reference import sparse_adam as adam_reference
from fastssl.reference import word_pairs as reference
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.common import BF16, F16, F32

#: (words, width, pairs, inputs, targets): one pair, several blocks of places, a ragged width, and rows that no program holds.
SHAPES = [(3, 1, 1, 1, 2), (5, 20, 40, 3, 4), (30, 150, 9, 1, 6), (6, 4100, 3, 2, 3)]


def arguments(words, width, pairs, inputs, targets, dtype):
    gen = torch.Generator().manual_seed(3)
    tables = [torch.randn(words, width, generator=gen).to(dtype) for _ in range(2)]
    ids = [torch.randint(-1, words, (pairs, n), generator=gen) for n in (inputs, targets)]
    return *tables, *ids


def wide(*given):
    return tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients(shape, dtype):
    given = arguments(*shape, dtype)
    ours, eager, truth = kernels.word_pairs_fwd(*given), reference.word_pairs_fwd(*given), reference.word_pairs_fwd(*wide(*given))
    for name, *three in zip(("loss", "h", "pull", "slope"), ours, eager, truth, strict=True):
        assert three[0].dtype == F32 and three[0].shape == three[1].shape
        assert_no_worse(name, *three, F32)
    _, h, pull, slope = eager
    weight = torch.linspace(0.5, 1.5, shape[2])
    for source, factor, ids in ((h, slope, given[3]), (pull, None, given[2])):
        sums = source, factor, weight, ids, shape[0], dtype
        exact = (*wide(*sums[:5]), torch.float64)
        rows, found = kernels.word_pairs_rows(*sums)
        plain, truth = reference.word_pairs_rows(*sums), reference.word_pairs_rows(*exact)
        assert torch.equal(rows, plain[0]) and found.dtype == dtype
        assert_no_worse("rows", found, plain[1], truth[1], dtype)
        table = kernels.word_pairs_table(*sums)
        assert torch.equal(table[rows], found) and table.count_nonzero() == found.count_nonzero()


def test_ids_that_are_all_left_out_give_no_rows():
    given = torch.ones(2, 3), None, torch.ones(2), torch.full((2, 1), -1), 4, F32
    rows, values = kernels.word_pairs_rows(*given)
    assert rows.shape == (0,) and values.shape == (0, 3) and not kernels.word_pairs_table(*given).any()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("width", [1, 20, 300])
def test_a_step_of_adam_on_some_rows(width, dtype):
    gen = torch.Generator().manual_seed(0)
    state = [torch.rand(9, width, generator=gen).to(dtype) for _ in range(3)]
    rows, values = torch.tensor([1, 4, 8]), torch.randn(3, width, generator=gen).to(dtype)
    found, plain, truth = ([t.clone() for t in state] for _ in range(3))
    truth = list(wide(*truth))
    rest = rows, values, 0.1, 0.9, 0.99, 1e-8
    adam_kernels.sparse_adam_(*found, *rest)
    adam_reference.sparse_adam_(*plain, *rest)
    adam_reference.sparse_adam_(*truth, *wide(*rest))
    for name, *three in zip(("param", "exp_avg", "exp_avg_sq"), found, plain, truth, strict=True):
        assert_no_worse(name, *three, dtype)
    assert torch.equal(found[0][[0, 2, 3]], state[0][[0, 2, 3]])


def test_an_id_that_is_no_row_gives_nan_and_reads_nothing():
    given = arguments(5, 20, 4, 2, 3, F32)
    right, weight = kernels.word_pairs_fwd(*given), torch.ones(4)
    for wrong, place in ((given[2].clone(), 2), (given[3].clone(), 3)):
        wrong[1, 1] = 5  # the first beyond the table
        found = kernels.word_pairs_fwd(*given[:2], *(wrong if k == place else given[k] for k in (2, 3)))
        assert found[0].isnan().tolist() == [False, True, False, False] and found[2][1].isnan().all()
        assert all(torch.equal(mine[[0, 2, 3]], plain[[0, 2, 3]]) for mine, plain in zip(found, right, strict=True))
        rows, values = kernels.word_pairs_rows(found[1], None, weight, wrong, 5, F32)
        assert rows.tolist() == sorted(set(wrong.flatten().tolist()) - {-1, 5}) and len(values) == len(rows)
        assert kernels.word_pairs_table(found[1], None, weight, wrong, 5, F32).shape == (5, 20)
