"""Every CUDA C++ op on inputs at odd addresses, with gaps and in other orders of memory. Twenty runs give the same bits."""

from itertools import cycle

import pytest
import torch

from tests.gpu.common import odd, on_gpu
from tests.gpu.op_calls import CALLS, check

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gapped(x):
    """A copy in which every stride is twice as large."""
    return torch.stack([x, x], -1)[..., 0]


def turned(x):
    """A copy whose last dimension is the outermost in memory."""
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x.clone()


def apart(x):
    """A copy whose rows are further apart than they are long, while the entries of a row are neighbours."""
    return x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)[..., : x.shape[-1]].copy_(x) if x.dim() else x.clone()


PLACES = {"odd": (odd,), "gapped": (gapped,), "turned": (turned,), "apart": (apart,), "mixed": (turned, odd, gapped, apart)}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_a_layout_gives_what_it_gives_on_the_cpu(case, place):
    """In the same layout: stochastic rounding counts elements in the order of memory."""
    given = case.tensors()
    ours, theirs = ([put(t) for put, t in zip(cycle(place), tensors, strict=False)] for tensors in (on_gpu(given), given))
    check(case, case.call(ours), case.call(theirs))


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_same_bits_in_twenty_runs(case):
    given = case.tensors()
    first = case.call(on_gpu(given))
    for _ in range(20):
        assert all(map(torch.equal, first, case.call(on_gpu(given))))
