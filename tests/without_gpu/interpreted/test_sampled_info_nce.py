"""The kernels of ``sampled_info_nce`` in Triton's interpreter, against float64 and plain PyTorch."""

import pytest
import torch

from fastssl.kernels import sampled_info_nce as kernels
from fastssl.ops.sampled_info_nce import EPS
from fastssl.reference import sampled_info_nce as reference
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.common import BF16, F16, F32

#: (queries, keys, width, entries): one of each, several tiles of entries, a ragged width, and rows that no program holds.
SHAPES = [(1, 1, 1, 1), (5, 4, 20, 70), (3, 7, 300, 17), (2, 3, 1100, 6)]


def arguments(queries, keys, width, entries, dtype, scale=10.0):
    gen = torch.Generator().manual_seed(3)
    query, table = torch.randn(queries, width, generator=gen).to(dtype), torch.randn(keys, width, generator=gen).to(dtype)
    index = torch.randint(keys, (queries, entries), generator=gen)
    if keys > 2:
        table[1], table[2] = table[0], 2 * table[0]  # equal to the first one, and parallel to it
        query[0] = 0  # a clamped row
        index[:, 0] = torch.tensor([0, 1, 2, 0, 1])[:queries]
    return query, table, index, torch.tensor(scale)


def wide(*given):
    return tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients(shape, dtype):
    given = arguments(*shape, dtype, scale=-10.0 if dtype == F16 else 10.0)
    ours, eager, truth = (
        call(*t, EPS, True)
        for call, t in (
            (kernels.sampled_info_nce_fwd, given),
            (reference.sampled_info_nce_fwd, given),
            (reference.sampled_info_nce_fwd, wide(*given)),
        )
    )
    live = slice(1 if shape[1] > 2 else 0, None)  # the gradient of the clamped row is divided by eps
    for name, mine, plain, right in zip(("loss", "slope", "lse", "cosines", "dquery"), ours, eager, truth, strict=True):
        assert mine.dtype == F32 and torch.equal(mine.isinf(), plain.isinf()), name
        there = right[live].isfinite()
        assert_no_worse(name, *(t[live][there] for t in (mine, plain, right)), F32)
    torch.testing.assert_close(EPS * ours[4], EPS * eager[4], rtol=1e-4, atol=1e-5)
    without = kernels.sampled_info_nce_fwd(*given, EPS, False)
    assert torch.equal(without[0], ours[0]) and without[4].shape == (shape[0], 0)
    dloss = torch.linspace(0.5, 1.5, shape[0])
    rest = eager[2], eager[3], EPS
    mine, plain = (module.sampled_info_nce_bwd(dloss, *given, *rest) for module in (kernels, reference))
    right = reference.sampled_info_nce_bwd(*wide(dloss, *given), truth[2], truth[3], EPS)
    assert mine.dtype == dtype
    assert_no_worse("dkeys", mine, plain, right, dtype)


def test_a_negative_equal_to_the_positive_is_left_out_and_a_parallel_one_is_not():
    query, keys, _, scale = arguments(3, 4, 20, 2, F32)
    index = torch.tensor([[0, 1, 3], [0, 2, 3], [0, 0, 3]])
    cosines = kernels.sampled_info_nce_fwd(query, keys, index, scale, EPS, False)[3]
    assert cosines.isneginf().tolist() == [[False, True, False], [False, False, False], [False, True, False]]


def test_an_id_out_of_range_gives_nan_and_reads_nothing():
    query, keys, index, scale = arguments(5, 4, 20, 4, F32)
    index[1, 2], index[2, 0] = 4, -1
    loss, _, lse, cosines, _ = kernels.sampled_info_nce_fwd(query, keys, index, scale, EPS, True)
    assert loss.isnan().tolist() == [False, True, True, False, False]
    dloss = torch.ones(5)
    dloss[1:3] = 0
    index[0, 1:] = 99  # no key of these gets anything
    found = kernels.sampled_info_nce_bwd(dloss[3:], query[3:], keys, index[3:], scale, lse[3:], cosines[3:], EPS)
    assert found.isfinite().all()


def test_a_key_that_nothing_names_gets_zeros():
    query, keys, _, scale = arguments(3, 4, 20, 3, F32)
    index = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    _, _, lse, cosines, _ = kernels.sampled_info_nce_fwd(query, keys, index, scale, EPS, True)
    found = kernels.sampled_info_nce_bwd(torch.ones(3), query, keys, index, scale, lse, cosines, EPS)
    assert found[:3].any(1).all() and not found[3].any()
