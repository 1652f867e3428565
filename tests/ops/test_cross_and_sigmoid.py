"""Edges of ``similarity_cross`` and ``sigmoid_pair`` that the case table does not reach."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.ops import sigmoid_pair, similarity_cross
from fastssl.reference import sigmoid_pair as sigmoid_reference
from fastssl.reference import similarity_cross as cross_reference
from fastssl.testing.compare import relative_error

INT64 = torch.tensor(2**40)


def sides(n=70, m=90, d=33, dtype=torch.float32):
    x, y = (F.normalize(torch.randn(k, d), dim=1).to(dtype) for k in (n, m))
    return x, y


def wide(arguments):
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def cross_arguments(n=70, m=90, d=33, scale=5.0, ids="third"):
    x, y = sides(n, m, d)
    x_id, y_id = torch.arange(n) % 3, torch.arange(m) % 3
    if ids == "all":
        x_id, y_id = torch.zeros(n, dtype=torch.int64), (torch.arange(m) % 2 == 0).long()
    elif ids == "large":
        x_id, y_id = x_id + INT64, y_id + INT64
    return [x, y, scale, torch.tensor(1.3), *((None, None) if ids is None else (x_id, y_id))]


@pytest.mark.parametrize("ids", [None, "third", "all", "large"])
@pytest.mark.parametrize("scale", [2.0, -2.0, 60.0, 1e4])  # logits within and beyond what is proved bounded
def test_cross_equals_the_reference_and_each_gradient_alone(scale, ids, isa):
    arguments = cross_arguments(scale=scale, ids=ids)
    threshold = torch.randn(70)
    got, want = (
        f(*a, threshold, 0)
        for f, a in ((similarity_cross._fwd, arguments), (cross_reference.similarity_cross_fwd, wide(arguments)))
    )
    assert relative_error(got[0], want[0]) < 2e-6 and relative_error(got[1], want[1]) < 2e-6
    assert torch.equal(got[2], want[2])
    g, h = torch.randn(70), torch.randn(90)
    backward = (g, h, *got[4:], got[3], *arguments)
    exact = cross_reference.similarity_cross_bwd(g.double(), h.double(), *want[4:], want[3], *wide(arguments), (True,) * 3)
    for k in range(3):
        need = tuple(j == k for j in range(3))
        alone = similarity_cross._bwd(*backward, need)
        assert [t.numel() > 0 for t in alone] == list(need)
        assert relative_error(alone[k], exact[k]) < (2e-5 if scale < 1e3 else 2e-3)


@pytest.mark.lucky
@pytest.mark.parametrize("scale", [2.0, 60.0])
def test_kept_logits_change_no_bit(scale, isa):
    arguments = cross_arguments(300, 520, 20, scale=scale)
    g, h = torch.randn(300), torch.randn(520)
    *plain, none, state, peak = similarity_cross._fwd(*arguments, None, 0)
    want = similarity_cross._bwd(g, h, state, peak, none, *arguments, (True,) * 3)
    for rows in (1, 100, 299, 300):
        *outputs, kept, state, peak = similarity_cross._fwd(*arguments, None, rows)
        assert kept.shape == (rows, 520) and all(torch.equal(a, b) for a, b in zip(plain, outputs, strict=True))
        got = similarity_cross._bwd(g, h, state, peak, kept, *arguments, (True,) * 3)
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_what_is_kept_is_bounded(monkeypatch):
    x, y = (t.requires_grad_() for t in sides(300, 520, 20))
    with torch.no_grad():
        whole = similarity_cross.similarity_cross(x, y, scale=3.0)
    for budget in (0, 1000, 520 * 100, 1 << 24):
        monkeypatch.setattr(similarity_cross, "KEEP_ELEMENTS", budget)
        out = similarity_cross.similarity_cross(x, y, scale=3.0)
        assert all(torch.equal(a, b) for a, b in zip(whole, out, strict=True))
        assert max(t.numel() for t in out[0].grad_fn.saved_tensors if t is not None) <= max(budget, x.numel(), y.numel())


def test_cross_is_two_calls_of_similarity_lse():
    from fastssl.functional import similarity_lse

    x, y = sides(300, 520, 20)
    row, column, _ = similarity_cross.similarity_cross(x, y, scale=7.0)
    torch.testing.assert_close(row, similarity_lse(x, y, scale=7.0))
    torch.testing.assert_close(column, similarity_lse(y, x, scale=7.0))


def sigmoid_arguments(n=70, m=90, scale=5.0, weights=False, ids="third"):
    x, y = sides(n, m)
    x_id, y_id = torch.arange(n) % 3, torch.arange(m) % 3
    if ids == "zero":  # the padding of a tile holds zeros too
        x_id, y_id = torch.zeros(n, dtype=torch.int32), torch.zeros(m, dtype=torch.int32)
    elif ids == "none equal":
        y_id = y_id + 7
    given = (torch.rand(n), torch.rand(m)) if weights else (None, None)
    return [x, y, scale, torch.tensor(1.3), -1.0, torch.tensor([-2.0]), x_id, y_id, *given]


@pytest.mark.parametrize("ids", ["third", "zero", "none equal"])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("scale", [3.0, -3.0, 1e4])
def test_sigmoid_pair_equals_the_reference_and_each_gradient_alone(scale, weights, ids, isa):
    arguments = sigmoid_arguments(scale=scale, weights=weights, ids=ids)
    exact = sigmoid_reference.sigmoid_pair(*wide(arguments), (True,) * 4)
    for need in ((False,) * 4, *(tuple(j == k for j in range(4)) for k in range(4)), (True,) * 4):
        got = sigmoid_pair._op(*arguments, need)
        assert [t.numel() > 0 for t in got] == [True, *need]
        for mine, want, wanted in zip(got, exact, (True, *need), strict=True):
            assert not wanted or relative_error(mine, want) < 3e-6


def test_sigmoid_terms_stay_exact_when_tiny():
    """All pairs are easy: the loss is about e^-30 for each of them."""
    x, y = sides(20, 20)
    got = sigmoid_pair.sigmoid_pair(x, y, scale=0.1, bias=-30.0, x_id=torch.arange(20), y_id=torch.arange(20) + 20)
    want = F.softplus(0.1 * x.double() @ y.double().T - 30.0, threshold=50).sum()
    assert want < 1e-10 and abs(got - want) < 1e-5 * want


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout):
    cross, pair = cross_arguments(6, 7, 5), sigmoid_arguments(6, 7, weights=True)
    if layout == "transposed":
        for arguments in (cross, pair):
            arguments[0] = arguments[0].t().contiguous().t()
    _, _, _, kept, *state = similarity_cross._fwd(*cross, None, 3)
    torch.library.opcheck(similarity_cross._fwd, (*cross, None, 0))
    torch.library.opcheck(similarity_cross._fwd, (*cross, torch.randn(6), 6))
    for need in ((True, True, True), (False, True, False)):
        torch.library.opcheck(similarity_cross._bwd, (torch.randn(6), torch.randn(7), *state, kept, *cross, need))
    for need in ((True,) * 4, (False, True, False, True), (False,) * 4):
        torch.library.opcheck(sigmoid_pair._op, (*pair, need))


def test_same_bits_on_one_thread_and_again_and_right_on_one_thread():
    x, y = sides(500, 300)
    many = similarity_cross.similarity_cross(x, y, scale=9.0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = similarity_cross.similarity_cross(x, y, scale=9.0)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(one, many)
    again = similarity_cross.similarity_cross(x, y, scale=9.0)
    assert all(torch.equal(a, b) for a, b in zip(many, again, strict=True))


def test_non_finite_inputs_show():
    x, y = sides(8, 9)
    x[3, 0] = math.nan
    row, column, _ = similarity_cross.similarity_cross(x, y, scale=2.0)
    assert row[3].isnan() and not row[:3].isnan().any() and column.isnan().all()
    ids = torch.arange(9)
    assert sigmoid_pair.sigmoid_pair(x, y, scale=2.0, bias=0.0, x_id=ids[:8], y_id=ids).isnan()
