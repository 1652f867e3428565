"""The older losses against pytorch-metric-learning and torch, whose names and formulas they follow."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastssl.loss.geometry import soft_nearest_neighbor, uniformity
from fastssl.loss.metric import contrastive_pairs, lifted_structured, triplet, triplet_batch
from fastssl.loss.sampled import n_pair, nce_log_z
from tests.support.older_losses import INDEX, D, N, assert_same, randn, run


@pytest.fixture(scope="module")
def pml():
    pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    from pytorch_metric_learning import distances, losses, miners

    return distances, losses, miners


def lp(pml, **kwargs):
    return pml[0].LpDistance(normalize_embeddings=False, **kwargs)


PML = {
    "ContrastiveLoss": (
        contrastive_pairs,
        lambda p: p[1].ContrastiveLoss(distance=lp(p)),
    ),
    "ContrastiveLoss squared": (
        partial(contrastive_pairs, pos_margin=0.2, neg_margin=4.0, distance="squared"),
        lambda p: p[1].ContrastiveLoss(0.2, 4.0, distance=lp(p, power=2)),
    ),
    "ContrastiveLoss cosine": (
        partial(contrastive_pairs, pos_margin=0.1, neg_margin=0.8, distance="cosine"),
        lambda p: p[1].ContrastiveLoss(0.9, 0.2, distance=p[0].CosineSimilarity()),
    ),
    "TripletMarginLoss": (
        partial(triplet_batch, margin=0.05),
        lambda p: p[1].TripletMarginLoss(distance=lp(p)),
    ),
    "TripletMarginLoss cosine": (
        partial(triplet_batch, margin=0.2, distance="cosine"),
        lambda p: p[1].TripletMarginLoss(0.2, distance=p[0].CosineSimilarity()),
    ),
    "TripletMarginLoss smooth": (
        partial(triplet_batch, soft=True),
        lambda p: p[1].TripletMarginLoss(0, smooth_loss=True, distance=lp(p)),
    ),
    "LiftedStructureLoss": (lifted_structured, lambda p: p[1].LiftedStructureLoss(distance=lp(p))),
    "NCALoss": (
        partial(soft_nearest_neighbor, temperature=0.5),
        lambda p: p[1].NCALoss(softmax_scale=2, distance=lp(p, power=2)),
    ),
}


@pytest.mark.parametrize("name", PML)
def test_is_pytorch_metric_learnings(pml, name):
    ours, theirs = PML[name]
    theirs = theirs(pml)
    inputs = {"x": randn(24, 6)}
    labels = torch.arange(24) % 5
    assert_same(run(lambda x: ours(x, labels), inputs), run(lambda x: theirs(x, labels), inputs), rtol=2e-5, atol=2e-6)


def test_batch_hard_is_pytorch_metric_learnings(pml):
    distance, labels = lp(pml), torch.arange(24) % 5
    miner, loss = pml[2].BatchHardMiner(distance=distance), pml[1].TripletMarginLoss(0.3, distance=distance)
    want = run(lambda x: loss(x, labels, miner(x, labels)), {"x": randn(24, 6)})
    assert_same(run(lambda x: triplet_batch(x, labels, 0.3, mining="hard"), {"x": randn(24, 6)}), want, rtol=2e-5, atol=2e-6)


def test_n_pair_is_pytorch_metric_learnings(pml):
    loss = pml[1].NPairsLoss(distance=pml[0].DotProductSimilarity(normalize_embeddings=False))
    inputs = {"a": randn(24, 6), "b": randn(24, 6, seed=1)}
    want = run(lambda a, b: loss(torch.cat([a, b]), torch.arange(24).repeat(2)), inputs)
    assert_same(run(lambda a, b: n_pair(a, b), inputs), want, rtol=2e-5, atol=2e-6)


def test_triplet_is_torchs():
    inputs = {name: randn(20, 6, seed=k) for k, name in enumerate("apn")}

    def theirs(a, p, n):
        return F.triplet_margin_loss(a, p, n, eps=0.0)

    assert_same(run(lambda a, p, n: triplet(a, p, n), inputs), run(theirs, inputs), rtol=1e-5, atol=1e-6)


def test_uniformity_is_pdist():
    x = F.normalize(randn(40, 8), dim=1)
    assert_same(run(uniformity, {"x": x}), run(lambda x: torch.pdist(x).pow(2).mul(-2).exp().mean().log(), {"x": x}))


def test_nce_log_z_is_the_mean_over_the_batch():
    q, bank = F.normalize(randn(N, D), dim=1), F.normalize(randn(9, D, seed=1), dim=1)
    want = math.log(100 * (bank[INDEX] * q[:, None]).sum(-1).div(0.3).exp().mean())
    for noise, kwargs in ((bank, {"noise_index": INDEX}), (bank[INDEX], {})):
        assert abs(nce_log_z(q, noise, 0.3, n=100, **kwargs) - want) < 1e-5
    assert abs(nce_log_z(q, bank, 0.3, n=9) - math.log(9 * (q @ bank.T).div(0.3).exp().mean())) < 1e-5
