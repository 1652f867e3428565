"""The log-sum-exp below a limit of each row: against the reference, where a pair changes sides between forward and backward, and
the limits of ``info_nce``."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import similarity_lse
from fastssl.ops import similarity_limited as limited
from fastssl.reference import similarity_limited as reference
from fastssl.testing.compare import relative_error
from fastssl.testing.similarities import gap_limits


def rows(n, d):
    return F.normalize(torch.randn(n, d), dim=1)


def wide(arguments):
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def operands(scale, ids="third", n=70, m=330, d=33):
    """Arguments of the op but for the last two, then thresholds and limits that no rounding of a logit reaches."""
    x, y, y_bias = rows(n, d), rows(m, d), torch.randn(m)
    x_id, y_id = torch.arange(n) % 3, torch.arange(m) % 3
    if ids is None:
        x_id = y_id = None
    elif ids == "all":
        x_id, y_id = torch.arange(n) % 2, torch.zeros(m, dtype=torch.int64)
    s = 1.3 * scale * (x.double() @ y.double().T) + y_bias
    threshold, limit = -gap_limits(-s), gap_limits(s)
    limit[:3] = torch.tensor([math.inf, -math.inf, math.nan])
    return [x, y, scale, torch.tensor(1.3), x_id, y_id, y_bias], threshold.float(), limit.float()


@pytest.mark.parametrize("ids", [None, "third", "all"])
@pytest.mark.parametrize("scale", [2.0, -2.0, 60.0, 1e4])
def test_each_gradient_alone_equals_the_reference(scale, ids, isa):
    arguments, threshold, limit = operands(scale, ids)
    got = limited._fwd(*arguments, threshold, limit)
    want = reference.similarity_limited_fwd(*wide(arguments), threshold, limit)
    assert relative_error(got[0], want[0]) < 1e-6 and torch.equal(got[0].isinf(), want[0].isinf())
    assert got[0][1] == -math.inf and got[1].sum() > 0 and torch.equal(got[1], want[1])
    g = torch.randn(70)
    exact = reference.similarity_limited_bwd(g.double(), *want[2:], *wide(arguments), limit, (True,) * 4)
    for k in range(4):
        need = tuple(j == k for j in range(4))
        alone = limited._bwd(g, *got[2:], *arguments, limit, need)
        assert [t.numel() > 0 for t in alone] == list(need)
        assert relative_error(alone[k], exact[k]) < (3e-5 if scale < 1e3 else 3e-3)


@pytest.mark.parametrize("scale", [2.0, 60.0, 1e4])
@pytest.mark.parametrize("change", [0.0, math.inf, -math.inf])
def test_a_pair_that_changes_sides_has_a_weight_of_at_most_one(scale, change, isa):
    """The backward is given other limits than the forward: as if every product near a limit had rounded to its other side."""
    arguments, _, limit = operands(scale)
    _, _, state, peak = limited._fwd(*arguments, None, limit)
    other = limit + change if change else limit * 0.5
    for i in (0, 1, 5, 20):
        g = F.one_hot(torch.tensor(i), 70).float()
        p = limited._bwd(g, state, peak, *arguments, other, (False, False, True, False))[2]  # the weights of row i
        assert p.isfinite().all() and p.min() >= 0.0 and p.max() <= 1.0 + 1e-6
        assert (p[peak[i]] > 0) if state[1, i] > 0 else (p == 0).all()


def test_no_limit_in_reach_is_similarity_lse():
    x, y = (rows(n, 20).requires_grad_() for n in (90, 130))
    scale, bias, g = torch.tensor(9.0, requires_grad=True), torch.randn(130, requires_grad=True), torch.randn(90)
    how = {"scale": scale, "y_bias": bias, "x_id": torch.arange(90), "y_id": torch.arange(130)}
    want = similarity_lse(x, y, **how)
    got, rank = limited.similarity_limited(x, y, torch.full((90,), 1e3), **how)
    assert rank.numel() == 0
    found, exact = (torch.autograd.grad(t, (x, y, scale, bias), g) for t in (got, want))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, want)


def test_rows_against_themselves():
    x = rows(50, 16).requires_grad_()
    ids = torch.arange(50)
    limit = gap_limits(6.0 * (x @ x.T).detach().double().fill_diagonal_(0.0)).float()
    got = limited.similarity_limited(x, x, limit, scale=6.0, x_id=ids, y_id=ids)[0]
    s = 6.0 * (x @ x.T)
    want = s.masked_fill((s > limit[:, None]) | torch.eye(50, dtype=torch.bool), -math.inf).logsumexp(1)
    g = torch.randn(50)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(t, x, g)[0] for t in (got, want)), rtol=1e-4, atol=1e-6)


def test_opcheck():
    arguments, threshold, limit = operands(2.0, n=6, m=7, d=5)
    arguments[0] = arguments[0].t().contiguous().t()
    _, _, *state = limited._fwd(*arguments, None, limit)
    torch.library.opcheck(limited._fwd, (*arguments, threshold, limit))
    for need in ((True,) * 4, (False, True, False, True)):
        torch.library.opcheck(limited._bwd, (torch.randn(6), *state, *arguments, limit, need))


def test_not_finite_inputs_show_and_wrong_limits_are_refused():
    x, y = rows(8, 4), rows(9, 4)
    x[3, 0] = math.nan
    lse = limited.similarity_limited(x, y, torch.zeros(8), scale=2.0)[0]
    assert lse[3].isnan() and not lse[:3].isnan().any()
    for limit, error in ((torch.zeros(9), ValueError), (torch.zeros(8, dtype=torch.int64), TypeError), (None, TypeError)):
        with pytest.raises(error, match="limit must"):
            limited.similarity_limited(x, y, limit)
