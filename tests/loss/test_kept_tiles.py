"""Tiles that the forward of a loss in one call keeps for its backward: they change no bit, whatever the number of threads is."""

import pytest
import torch

from fastssl.functional import nt_xent, sup_con
from fastssl.ops._register import _C

pytestmark = pytest.mark.skipif(_C is None, reason="C++ kernels are not built")
LABELS = torch.arange(75) // 3
KEEPERS = {
    "nt_xent": (lambda x: nt_xent(x[:150], x[150:], 0.3), 300),
    "nt_xent, not bounded": (lambda x: nt_xent(x[:150], x[150:], 0.01), 300),
    "sup_con": (lambda x: sup_con(x.view(75, 4, 21), LABELS, temperature=0.3), 300),
    "sup_con, not bounded": (lambda x: sup_con(x.view(75, 4, 21), LABELS, temperature=0.01), 300),
    "one block": (lambda x: nt_xent(x[:20], x[20:], 0.3), 40),
}


@pytest.fixture
def keep_at_most():
    before, _ = _C.most_kept()
    yield _C.keep_at_most
    _C.keep_at_most(before)


def step_and_saved(loss_of, rows, dtype=torch.float32):
    """The loss, the gradient, and how many elements the largest tensor has that the node saves."""
    x = torch.randn(rows, 21, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()
    sizes = [0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        loss = loss_of(x)
    return loss, *torch.autograd.grad(loss, x), max(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("loss_of", "rows"), KEEPERS.values(), ids=KEEPERS)
def test_kept_tiles_change_no_bit(loss_of, rows, dtype, isa, keep_at_most):
    loss, grad, most = step_and_saved(loss_of, rows, dtype)
    keep_at_most(0)
    again, recomputed, least = step_and_saved(loss_of, rows, dtype)
    assert torch.equal(loss, again) and torch.equal(grad, recomputed)
    assert least == max(rows * 21, 9 * rows // 2) and most >= rows * (rows + 1) // 2
    with torch.no_grad():
        assert torch.equal(loss, loss_of(torch.randn(rows, 21, generator=torch.Generator().manual_seed(1), dtype=dtype)))


def test_the_backward_may_run_on_another_number_of_threads():
    """The tiles of the forward are read in their own blocks, whatever the number of threads is by then."""
    x = torch.randn(1300, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (want,) = torch.autograd.grad(nt_xent(x[:650], x[650:], 0.3), x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(12)  # more blocks than with up to 8 threads
        loss = nt_xent(x[:650], x[650:], 0.3)
        torch.set_num_threads(threads)
        (got,) = torch.autograd.grad(loss, x)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * want.abs().max().item())
