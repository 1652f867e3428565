"""``sampled_info_nce``: the formula in float64, what is left out, memory, the order of the sums, FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastssl.functional import sampled_info_nce
from fastssl.ops.sampled_info_nce import EPS
from fastssl.reference import sampled_info_nce as reference
from fastssl.testing.sampled import tables

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(m=9, k=7, width=20, negatives=5, dtype=torch.float64):
    gen = torch.Generator().manual_seed(1)
    given = tables((m, k, width), dtype)
    index = torch.randint(k, (m, 1 + negatives), generator=gen)
    return *(t.requires_grad_() for t in given.values()), index[:, 0], index[:, 1:]


def written_out(query, keys, positive, negatives, temperature):
    """One query after the other."""
    losses = []
    for c, at, others in zip(query, positive, negatives, strict=True):
        cos = lambda row, c=c: c @ row / c.norm() / row.norm()  # noqa: E731
        own = cos(keys[at]) / temperature
        rest = [cos(keys[j]) / temperature for j in others if not torch.equal(keys[j], keys[at])]
        losses.append(torch.stack([own, *rest]).logsumexp(0) - own)
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [0.1, 2.0, -0.7])
def test_losses_and_gradients_are_those_of_the_formula(temperature):
    query, keys, positive, negatives = drawn()
    with torch.no_grad():
        keys[2], keys[3] = keys[1], 2.0 * keys[0]  # equal rows are one; parallel rows are two
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(0.5, 2.0, len(query), dtype=torch.float64)
    found = sampled_info_nce(query, keys, positive, negatives, temperature=t, reduction="none")
    wanted = written_out(query, keys, positive, negatives, t)
    torch.testing.assert_close(found, wanted)
    for mine, right in zip(*(torch.autograd.grad(weight @ each, (query, keys, t)) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, right)
    for reduction in ("mean", "sum"):
        one = sampled_info_nce(query, keys, positive, negatives, temperature=t, reduction=reduction)
        torch.testing.assert_close(one, getattr(wanted, reduction)())


def test_a_query_whose_negatives_all_equal_its_positive_loses_nothing():
    query, keys, positive, _ = drawn()
    loss = sampled_info_nce(query, keys, positive, positive[:, None].expand(-1, 3), reduction="none")
    assert not loss.any()
    loss.sum().backward()
    assert not query.grad.any() and not keys.grad.any()


def test_a_negative_that_comes_twice_counts_twice():
    keys = torch.eye(3)
    call = lambda others: sampled_info_nce(keys[:1], keys, torch.tensor([0]), torch.tensor([others]), temperature=1.0)  # noqa: E731
    torch.testing.assert_close(call([1, 1]), call([1, 2]))
    assert call([1, 1]) > 1.1 * call([1])


def test_rows_of_any_length_and_layout():
    query, keys, positive, negatives = (t.detach() for t in drawn(dtype=torch.float32))
    wanted = sampled_info_nce(query, keys, positive, negatives)
    spread = torch.stack([keys, keys], 2)[:, :, 0]
    torch.testing.assert_close(sampled_info_nce(100.0 * query, 0.01 * spread, positive.int(), negatives.short()), wanted)
    query = torch.cat([torch.zeros(1, 20), query[1:]]).requires_grad_()
    loss = sampled_info_nce(query, keys, positive, negatives)
    loss.backward()
    assert loss.isfinite() and query.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compiled_kernels_are_as_right_as_plain_pytorch(dtype):
    """Widths of whole registers and beyond; the op itself, so that no reduction hides an error."""
    for shape in ((5, 4, 3, 2), (6, 9, 300, 7), (3, 5, 64, 101)):
        query, keys, positive, negatives = (t.detach() for t in drawn(*shape, dtype=dtype))
        given = query, keys, torch.cat([positive[:, None], negatives], 1), torch.tensor(10.0)
        exact = [t.double() if t.is_floating_point() else t for t in given]
        found = torch.ops.fastssl.sampled_info_nce_fwd(*given, EPS, True)
        plain, right = reference.sampled_info_nce_fwd(*given, EPS, True), reference.sampled_info_nce_fwd(*exact, EPS, True)
        for mine, eager, truth in zip(found, plain, right, strict=True):
            there = truth.isfinite()
            assert mine.dtype == torch.float32 and torch.equal(mine.isfinite(), there)
            error = lambda t, truth=truth, there=there: (t.double() - truth)[there].abs().max().item()  # noqa: E731
            assert error(mine) <= 2 * error(eager) + 2e-6 * truth[there].abs().max().item()
        rest = torch.ones(len(query)), *given, found[2], found[3], EPS
        torch.testing.assert_close(torch.ops.fastssl.sampled_info_nce_bwd(*rest), reference.sampled_info_nce_bwd(*rest))


def test_plain_pytorch_keeps_its_dtype_under_autocast():
    query, keys, positive, negatives = drawn(dtype=torch.float32)
    index, scale = torch.cat([positive[:, None], negatives], 1), torch.tensor(4.0)
    with torch.no_grad():
        plain = reference.sampled_info_nce_fwd(query, keys, index, scale, EPS, True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = reference.sampled_info_nce_fwd(query, keys, index, scale, EPS, True)
    assert all(torch.equal(*pair) for pair in zip(plain, found, strict=True))


def test_each_row_of_the_gradient_of_the_keys_is_summed_in_one_order():
    """Any number of threads, and keys in another order, give the same bits."""
    query, keys, positive, negatives = drawn(300, 40, 64, 30, torch.float32)
    (once,) = torch.autograd.grad(sampled_info_nce(query, keys, positive, negatives), keys)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (again,) = torch.autograd.grad(sampled_info_nce(query, keys, positive, negatives), keys)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(once, again)
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    place = shuffle.argsort()
    (moved,) = torch.autograd.grad(sampled_info_nce(query, keys[shuffle], place[positive], place[negatives]), keys)
    torch.testing.assert_close(moved, once)


def test_no_tensor_has_the_rows_of_all_negatives():
    """The largest tensor that the step makes: nothing of the size of (M, J, D), forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            for each in out if isinstance(out, (tuple, list)) else [out]:
                self.most = max(self.most, each.numel() if isinstance(each, torch.Tensor) else 0)
            return out

    query, keys, positive, negatives = drawn(100, 90, 64, 50, torch.float32)
    with Largest() as largest:
        sampled_info_nce(query, keys, positive, negatives).backward()
    assert largest.most == 100 * 64


def test_flops_are_counted():
    query, keys, positive, negatives = drawn(8, 6, 16, 3)
    for needs, sweeps in (((True, True), 3), ((True, False), 2), ((False, True), 2)):
        given = (t.detach().requires_grad_(need) for t, need in zip((query, keys), needs, strict=True))
        with FlopCounterMode(display=False) as counter:
            sampled_info_nce(*given, positive, negatives).backward()
        assert counter.get_total_flops() == sweeps * 2 * 8 * 4 * 16


X, AT, OTHERS = torch.randn(4, 3), torch.arange(4), torch.zeros(4, 2, dtype=torch.int64)
WRONG = {
    "width": (ValueError, r"keys must have shape \(K, 3\)", (X, X[:, :2], AT, OTHERS)),
    "dtype": (TypeError, "query and keys must have the same dtype", (X, X.double(), AT, OTHERS)),
    "positive shape": (ValueError, r"positive_index must have shape \(4,\)", (X, X, AT[:3], OTHERS)),
    "positive dtype": (TypeError, "positive_index must be an integer tensor", (X, X, AT.float(), OTHERS)),
    "positive range": (ValueError, "positive_index must be rows of keys, from 0 to 3, got 1 to 4", (X, X, AT + 1, OTHERS)),
    "negative shape": (ValueError, r"negative_index must have shape \(4, M\)", (X, X, AT, AT)),
    "no negative": (ValueError, r"negative_index must have shape \(4, M\)", (X, X, AT, OTHERS[:, :0])),
    "negative range": (ValueError, "negative_index must be rows of keys, from 0 to 3, got -1 to -1", (X, X, AT, OTHERS - 1)),
    "no rows": (ValueError, "query must have at least one row", (X[:0], X, AT[:0], OTHERS[:0])),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    error, words, given = WRONG[name]
    with pytest.raises(error, match=f"sampled_info_nce: {words}"):
        sampled_info_nce(*given)


def test_wrong_numbers_are_refused():
    for how, words in (({"temperature": 0}, "temperature must be finite and not 0"), ({"reduction": "all"}, "reduction must be")):
        with pytest.raises(ValueError, match=f"sampled_info_nce: {words}"):
            sampled_info_nce(X, X, AT, OTHERS, **how)
