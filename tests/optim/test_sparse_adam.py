"""``SparseAdam`` against torch's: steps, state, gradients and tables in any order and layout, refusals."""

import pytest
import torch

from fastssl.optim import SparseAdam
from fastssl.testing.compare import assert_no_worse

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, WIDTH = 11, 37
HOW = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}


def gradient(step: int, dtype=torch.float32, order=False) -> torch.Tensor:
    """Of four rows in another order at each step; without ``order`` one of them comes twice."""
    gen = torch.Generator().manual_seed(step)
    rows = torch.randperm(ROWS, generator=gen)[:4]
    rows = rows.sort().values if order else torch.cat([rows, rows[:1]])
    values = torch.randn(len(rows), WIDTH, generator=gen, dtype=torch.float64).to(dtype)
    return torch.sparse_coo_tensor(rows[None], values, (ROWS, WIDTH), check_invariants=True)


def table(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype).requires_grad_()


def trained(kind, p: torch.Tensor, first=0, last=5, state=None, **how) -> torch.optim.Optimizer:
    optimizer = kind([p], **(HOW | how))
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(first, last):
        p.grad = gradient(step, p.dtype, order=step % 2 == 0)
        optimizer.step()
    return optimizer


def results(p: torch.Tensor, optimizer) -> tuple[torch.Tensor, ...]:
    return p.detach(), *(optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_steps_are_those_of_torch(dtype, isa):
    ours, theirs, truth = table(dtype), table(dtype), table(dtype).detach().double().requires_grad_()
    optimizers = [trained(kind, p) for kind, p in ((SparseAdam, ours), (torch.optim.SparseAdam, theirs))]
    exact = torch.optim.SparseAdam([truth], **HOW)
    for step in range(5):
        truth.grad = gradient(step, dtype, order=step % 2 == 0).double()
        exact.step()
    three = results(ours, optimizers[0]), results(theirs, optimizers[1]), results(truth, exact)
    for name, *each in zip(("param", "exp_avg", "exp_avg_sq"), *three, strict=True):
        assert each[0].dtype == dtype
        assert_no_worse(name, *each, dtype)


def test_rows_without_a_gradient_keep_their_bits():
    p = table()
    optimizer = trained(SparseAdam, p, last=1)
    rest = [r for r in range(ROWS) if r not in gradient(0).coalesce().indices()]
    assert torch.equal(p[rest], table()[rest]) and not optimizer.state[p]["exp_avg"][rest].any()


@pytest.mark.parametrize("kinds", [(SparseAdam, torch.optim.SparseAdam), (torch.optim.SparseAdam, SparseAdam)], ids=["to", "from"])
def test_a_state_goes_to_torchs_optimizer_and_back(kinds):
    whole, p = table(), table()
    trained(SparseAdam, whole)
    state = trained(kinds[0], p, last=3).state_dict()
    trained(kinds[1], p, 3, state=state)
    torch.testing.assert_close(p, whole)


@pytest.mark.parametrize("layout", ["columns", "part of a wider table"])
def test_tables_in_another_layout(layout):
    if layout == "columns":
        p = table().detach().t().contiguous().t()
    else:
        p = torch.full((ROWS, 2 * WIDTH), torch.nan)[:, :WIDTH].copy_(table().detach())
    plain, p = table(), p.requires_grad_()
    trained(SparseAdam, plain)
    trained(SparseAdam, p)
    assert torch.equal(p, plain)


def test_a_rate_may_be_a_tensor_and_a_closure_is_called_first():
    p, plain = table(), table()
    trained(SparseAdam, p, lr=torch.tensor(0.05))
    trained(SparseAdam, plain)
    torch.testing.assert_close(p, plain)
    plain = p.detach().clone()

    def closure():
        p.grad = gradient(7)
        return (p * 2).sum()

    optimizer = SparseAdam([p], **HOW)
    assert optimizer.step(closure).requires_grad and not torch.equal(p, plain)


def test_an_empty_gradient_moves_nothing():
    p = table()
    p.grad = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, WIDTH), p.shape, check_invariants=True)
    SparseAdam([p]).step()
    assert torch.equal(p, table())


def step_with(grad: torch.Tensor) -> None:
    good, bad = table(), table()
    good.grad, bad.grad = gradient(0), grad
    try:
        SparseAdam([good, bad]).step()
    finally:
        assert torch.equal(good, table()), "nothing changes before all gradients were seen"


REFUSALS = [
    (lambda: step_with(torch.zeros(ROWS, WIDTH)), TypeError, "gradients must be sparse, got a dense one"),
    (
        lambda: step_with(torch.ones(ROWS, WIDTH).to_sparse()),
        ValueError,
        "gradients must hold whole rows, .* got 2",
    ),
    (lambda: SparseAdam([torch.zeros(3, requires_grad=True)]), ValueError, r"params must be \(V, D\), got \(3,\)"),
    (lambda: SparseAdam([torch.zeros(3, 2, dtype=torch.complex64)]), TypeError, "params must be float32, .* got torch.complex64"),
]


@pytest.mark.parametrize("call, kind, said", REFUSALS)
def test_refusals(call, kind, said):
    with pytest.raises(kind, match=f"SparseAdam: {said}"):
        call()


def test_maximize_is_refused():
    p = table()
    p.grad = gradient(0)
    with pytest.raises(NotImplementedError, match="SparseAdam: maximize is not supported"):
        SparseAdam([p], maximize=True).step()
