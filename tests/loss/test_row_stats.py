"""RowStats: ranks, accuracies and mean similarities agree with those counted in the whole matrix."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl import functional
from fastssl.testing import contrastive
from fastssl.testing.inputs import keys_and_negatives, two_views

MODES = ["batch", "symmetric", "unpaired", "paired", "hard", "weighted", "ids", "moco"]


@pytest.mark.parametrize("mode", MODES)
def test_row_statistics(mode):
    """Ranks agree with those counted in the whole matrix."""
    n = 64
    data = keys_and_negatives((n, 12), paired=mode == "paired", seed=3)
    q, k, extra = (contrastive.unit(t + 0.8 * torch.randn_like(t)) for t in data.values())
    scale, diagonal = 5.0, torch.eye(n, dtype=torch.bool)
    options = {"temperature": 1 / scale, "return_stats": True}
    if mode in ("unpaired", "paired"):
        value, stats = functional.info_nce(q, k, extra, negative_mode=mode, **options)
        negatives = q @ extra.T if mode == "unpaired" else torch.einsum("nd,nmd->nm", q, extra)
    elif mode == "moco":
        value, stats = functional.moco_loss(q, k, extra.T.contiguous(), **options)
        negatives = q @ extra.T
    else:
        hard = {"hard_negative_keys": extra} if mode in ("hard", "weighted") else {}
        hard |= {"hard_negative_weight": 0.3} if mode == "weighted" else {}
        ids = torch.arange(n) // 4 if mode == "ids" else None
        value, stats = functional.info_nce(q, k, symmetric=mode == "symmetric", ids=ids, **hard, **options)
        negatives = (q @ k.T).masked_fill(diagonal if ids is None else ids[:, None] == ids, math.nan)
        if hard:
            negatives = torch.cat([negatives, q @ extra.T], 1)
    positive = (q * k).sum(1)
    bonus = 0.3 / scale * F.pad(diagonal, (n, 0)) if mode == "weighted" else 0.0
    rank = (negatives + bonus > positive[:, None]).sum(1)
    assert torch.equal(stats.rank, rank.to(torch.int32)) and 0 < stats.acc1 < 1
    torch.testing.assert_close(stats.acc1, (rank < 1).float().mean())
    torch.testing.assert_close(stats.acc5, (rank < 5).float().mean())
    torch.testing.assert_close(stats.positive, positive)
    torch.testing.assert_close(stats.negative, negatives.nanmean(1))
    if mode != "symmetric":
        torch.testing.assert_close(stats.loss.mean(), value)
    assert not any(t.requires_grad for t in stats)


def test_statistics_change_nothing():
    seen = []
    for counted in (False, True):
        q, k = (t.requires_grad_() for t in two_views((40, 8)).values())
        found = functional.info_nce(q, k, return_stats=counted)
        loss = found[0] if counted else found
        loss.backward()
        seen.append((loss.detach(), q.grad, k.grad))
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 5, 48, 384, 2048])
def test_the_positive_once_more_is_not_more_similar(width, dtype):
    """Collapsed encoders and duplicate keys have the same products, which are added up in another order."""
    torch.manual_seed(width)
    for row in (torch.ones(1, width), torch.rand(1, width), torch.randn(1, width), 3e3 * torch.rand(1, width)):
        for q in (row.to(dtype).repeat(9, 1), F.normalize(row, dim=1).to(dtype).repeat(9, 1)):
            for stats in (
                functional.moco_loss(q, q, q.t().contiguous(), return_stats=True)[1],
                functional.info_nce(q, q, return_stats=True)[1],
                functional.info_nce(q, q, temperature=-0.2, normalize=False, symmetric=True, return_stats=True)[1],
                functional.info_nce(q, q, q.expand(9, 9, width), negative_mode="paired", return_stats=True)[1],
            ):
                assert stats.rank.tolist() == [0] * 9 and stats.acc1 == 1


def test_what_is_more_similar_by_more_than_rounding_counts():
    q = F.normalize(torch.rand(9, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    for queue in (q * (1 + 100 * 2**-23), q * (1 - 100 * 2**-23)):  # the bar is 72 roundings above the positive
        similarity = q.double() @ queue.double().t()
        rank = (similarity > (q.double() ** 2).sum(1, keepdim=True) * (1 + 72 * 2**-23)).sum(1)
        assert functional.moco_loss(q, q, queue.t(), return_stats=True)[1].rank.tolist() == rank.tolist()
        assert (rank.sum() > 0) == (queue[0, 0] > q[0, 0])
    k = F.normalize(q + 0.3 * torch.randn(9, 64, generator=torch.Generator().manual_seed(2)), dim=1).repeat_interleave(2, 0)[:9]
    similarity = q.double() @ k.double().t()  # each key is there twice
    rank = (similarity > similarity.diag()[:, None] * (1 + 1e-6)).sum(1)
    assert functional.info_nce(q, k, normalize=False, return_stats=True)[1].rank.tolist() == rank.tolist()
