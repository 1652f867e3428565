"""``info_nce`` of queries and passages: every kind of column against float64, what the margin drops, and what is refused."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import info_nce, matryoshka
from fastssl.testing import contrastive

B, G, D = 70, 3, 24
STRIDE = {"target": G}
MIXED = torch.arange(B) * G % (B * G - 7)
IDS = torch.arange(B * G) // 4 * 5


def batch(seed=0):
    """Queries and their passages, of which some are false negatives: nearly the positive of another query."""
    gen = torch.Generator().manual_seed(seed)
    q, p = (torch.randn(n, D, generator=gen, dtype=torch.float64) for n in (B, B * G))
    p[::G] = q + 0.7 * p[::G]
    p[1 : 10 * G : G] = 1.5 * q[:10]  # hard negatives closer than the positive
    p[2 : 10 * G : G] = q[20:30] + 0.05 * p[2 : 10 * G : G]  # false negatives of queries 20 to 29
    q[50:60] = q[40:50] + 0.1 * q[50:60]  # queries that repeat others
    return q, p


def check(temperature=0.05, **how):
    """Loss and gradients against float64, where no similarity may lie where rounding decides."""
    q, p = (t.requires_grad_() for t in batch())
    want = contrastive.info_nce_passages(q, p, temperature, **how)
    exact = torch.autograd.grad(want, (q, p))
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        ours = [t.detach().to(dtype).requires_grad_() for t in (q, p)]
        loss = info_nce(*ours, temperature=temperature, **how)
        assert abs(loss - want) < bound * (1 + want)
        for got, true in zip(torch.autograd.grad(loss, ours), exact, strict=True):
            assert (got - true).norm() < bound * true.norm()
    return want.item()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"margin": 0.1},
        {"margin": -0.2},
        {"relative_margin": -0.05},
        {"margin": 0.02, "relative_margin": 0.1, "normalize": False},
        {"margin": 0.1, "spare_hard_negatives": True},
        {"margin": 0.1, "query_query": True},
        {"query_query": True, "doc_query": True, "doc_doc": True},
        {"margin": 0.1, "query_query": True, "doc_query": True, "doc_doc": "other", **STRIDE},
        {"margin": 0.1, "query_query": True, "doc_doc": True, "ids": IDS},
        {"target": MIXED, "doc_query": True},
        {"target": MIXED, "margin": 0.1, "ids": IDS, "doc_doc": True},
        {"target": 2},  # 140 passages of the queries, and 70 more
        {"target": 2, "margin": 0.1, "spare_hard_negatives": True, "doc_doc": "other"},
    ],
    ids=lambda how: " ".join(f"{k}={'tensor' if isinstance(v, torch.Tensor) else v}" for k, v in how.items()),
)
def test_loss_and_gradients_equal_float64(how):
    check(temperature=1.0 if how.get("normalize") is False else 0.05, **how)


def test_each_argument_changes_the_loss():
    losses = [check(**how) for how in ({}, {"margin": 0.1}, {"margin": 0.1, "spare_hard_negatives": True}, {"query_query": True})]
    assert losses[1] < losses[2] < losses[0] < losses[3]


def test_one_passage_a_query_is_the_loss_of_pairs():
    q, p = batch()
    torch.testing.assert_close(info_nce(q, p[::G], target=1), info_nce(q, p[::G]))
    torch.testing.assert_close(info_nce(q, p[::G], margin=10.0, ids=IDS[:B]), info_nce(q, p[::G], ids=IDS[:B]))


@pytest.mark.parametrize("width", [D, 333])
def test_a_margin_of_zero_keeps_what_equals_the_positive(width):
    """Products of equal rows may round to different sums, but each copy of a positive keeps its share of loss and gradient."""
    q, p = (torch.randn(n, width, generator=torch.Generator().manual_seed(n)) for n in (B, B * G))
    p[::G] += q
    p[1::G] = p[::G]
    found = []
    for dtype, margin, call in ((torch.float32, 0.0, info_nce), (torch.float64, 1e-9, contrastive.info_nce_passages)):
        sides = [t.to(dtype).requires_grad_() for t in (q, p)]
        loss = call(*sides, temperature=0.05, margin=margin)
        found.append((loss, *torch.autograd.grad(loss, sides)))
    assert abs(found[1][0] - math.log(2.0)) < 0.2  # nearly all of it is that of two equal logits
    for got, true in zip(*found, strict=True):  # of equal logits the gradients nearly cancel
        assert (got - true).norm() < 2e-5 * true.norm() + 1e-6


def several(rows, most=3):
    """Up to ``most`` positives of each of B queries, of the first ``rows`` passages, a passage once."""
    target = torch.randperm(rows, generator=torch.Generator().manual_seed(3))[: B * most].reshape(B, most)
    drop = torch.arange(B)[:, None] % 4 < torch.arange(most)  # the first query has 1, the second 2, and so on
    return target.masked_fill(drop, -1)


@pytest.mark.parametrize("how", [{}, {"margin": 0.05}, {"margin": -0.1, "query_query": True}], ids=str)
def test_several_positives_are_the_mean_over_them(how):
    target, temperature = several(B * G), 0.1
    q, p = (t.requires_grad_() for t in batch())
    a, b = F.normalize(q, dim=1), F.normalize(p, dim=1)
    s, there = a @ b.T, target >= 0
    dots = s.gather(1, target.clamp_min(0))
    bar = torch.where(there, dots, -2.0).max(1, keepdim=True).values.detach() + how.get("margin", math.inf)
    out = torch.zeros(B, B * G + 1, dtype=torch.bool).scatter(1, torch.where(there, target, B * G), True)[:, :-1]
    blocks = [s.masked_fill(out | (s > bar), -math.inf)]
    if how.get("query_query"):
        among = a @ a.T
        blocks.append(among.masked_fill((among > bar) | torch.eye(B, dtype=torch.bool), -math.inf))
    lse = torch.logsumexp(torch.cat(blocks, 1) / temperature, 1, keepdim=True)
    rows = torch.where(there, F.softplus(lse - dots / temperature), 0.0).sum(1) / there.sum(1)
    exact = torch.autograd.grad(rows.mean(), (q, p))
    ours = [t.detach().requires_grad_() for t in (q, p)]
    loss, stats = info_nce(*ours, temperature=temperature, target=target, return_stats=True, **how)
    for got, true in zip((loss, *torch.autograd.grad(loss, ours)), (rows.mean(), *exact), strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stats.loss, rows.detach())
    torch.testing.assert_close(stats.negative, torch.where(out, 0.0, s).sum(1).detach() / (~out).sum(1))
    one = several(B * G, 1)
    torch.testing.assert_close(info_nce(q, p, target=one, **how), info_nce(q, p, target=one[:, 0], **how))


def test_statistics_and_matryoshka():
    q, p = (t.float() for t in batch())
    loss, stats = info_nce(q, p, margin=0.1, return_stats=True, reduction="none")
    s = F.normalize(q, dim=1) @ F.normalize(p, dim=1).T
    positive = s.gather(1, torch.arange(0, B * G, G)[:, None])
    kept = (s <= positive + 0.1).scatter(1, torch.arange(0, B * G, G)[:, None], False)
    assert torch.equal(stats.rank.long(), (kept & (s > positive + 1e-6)).sum(1)) and stats.rank.sum() > 0
    torch.testing.assert_close(stats.loss, loss)
    torch.testing.assert_close(stats.negative, (s.sum(1) - positive[:, 0]) / (B * G - 1))
    spared = info_nce(q, p, margin=0.1, return_stats=True, spare_hard_negatives=True)[1]
    own = torch.arange(B)[:, None] == torch.arange(B * G) // G
    assert torch.equal(spared.rank.long(), ((kept | own) & (s > positive + 1e-6)).sum(1))
    one = partial(info_nce, margin=0.1, query_query=True)
    parts = [one(q[:, :d], p[:, :d]) for d in (8, 24)]
    torch.testing.assert_close(matryoshka(one, q, p, dims=(8, 24)), parts[0] + parts[1])


@pytest.mark.parametrize("margin", [None, 0.1])
def test_a_row_without_negatives_has_no_loss_and_no_gradient(margin):
    q, temperature = torch.randn(1, 4, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    for p in (torch.randn(1, 4), torch.randn(1, 4, requires_grad=True)):
        loss = info_nce(q, p, temperature=temperature, margin=margin, query_query=True, doc_query=True, doc_doc=True)
        assert loss == 0 and all((g == 0).all() for g in torch.autograd.grad(loss, (q, temperature)))


@pytest.mark.parametrize(
    "how, error, words",
    [
        ({"target": torch.arange(B - 1)}, ValueError, "target must have shape"),
        ({"target": torch.arange(B) + 3 * B}, ValueError, "target must be rows of positive_key"),
        ({"target": 4}, ValueError, "need 280, got 210"),
        ({"target": 0}, ValueError, "target must be in"),
        ({"target": torch.full((B, 2), -1)}, ValueError, "a positive for each query"),
        ({"target": torch.zeros(B, 1, dtype=torch.int64)}, ValueError, "must name a passage once"),
        ({"target": several(B * G) + 90}, ValueError, "or -1, got"),
        ({"target": several(B * G)[:9]}, ValueError, r"target must have shape \(N,\) or \(N, P\)"),
        ({"target": several(B * G), "doc_doc": True}, ValueError, "doc_doc cannot be given with several positives"),
        ({"target": 1.5}, TypeError, "target must be an integer tensor"),
        ({"margin": float("nan")}, ValueError, "margin must be finite"),
        ({"margin": torch.tensor(1.0)}, TypeError, "margin must be a number"),
        ({"query_query": 1}, TypeError, "query_query must be True or False"),
        ({"doc_doc": "all"}, ValueError, "doc_doc must be one of"),
        ({"ids": torch.arange(B)}, ValueError, "ids must have shape"),
        ({"spare_hard_negatives": True, "ids": IDS}, ValueError, "spare_hard_negatives needs passages that lie"),
        ({"doc_doc": "other", "target": MIXED}, ValueError, "cannot be given with a target tensor"),
        ({"symmetric": True}, ValueError, "symmetric is not for passages"),
        ({"margin": 0.1, "label_smoothing": 0.1}, ValueError, "because margin was given"),
        ({"negative_keys": torch.randn(3, D, dtype=torch.float64)}, ValueError, "negative_keys is not for passages"),
    ],
)
def test_refusals(how, error, words):
    with pytest.raises(error, match=words):
        info_nce(*batch(), **how)


def test_shapes_that_cannot_be_passages_are_refused():
    q, p = batch()
    for passages, words in ((p[:-1], "a multiple of N rows"), (p[:, :5], "same width"), (p[:0], "at least one row")):
        with pytest.raises(ValueError, match=words):
            info_nce(q, passages)
    with pytest.raises(TypeError, match="same dtype"):
        info_nce(q, p.float())
