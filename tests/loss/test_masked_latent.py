"""``masked_latent_loss`` against the formulas of I-JEPA, V-JEPA 2 and data2vec, with unusual inputs, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import masked_latent_loss
from fastssl.testing.latents import rows

N, L, D = 3, 10, 24


def normal(*shape, seed=0, dtype=torch.float32):
    return rows(shape, dtype, seed=seed)["z"]


def blocks(count, tokens):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(N, L, generator=generator).argsort(1)[:, : tokens + b].contiguous() for b in range(count)]


def gathered(h, ids):
    return torch.stack([sample[places] for sample, places in zip(h, ids, strict=True)])


def value_and_gradient(call, pred):
    pred = pred.clone().requires_grad_()
    loss = call(pred)
    return loss.detach(), torch.autograd.grad(loss, pred)[0]


def check(ours, theirs, pred):
    torch.testing.assert_close(value_and_gradient(ours, pred), value_and_gradient(theirs, pred), rtol=1e-5, atol=1e-8)


def test_i_jepa():
    """Several target blocks of each image, predicted from several contexts: block after block, in each context after context."""
    h, ids = normal(N, L, D) * 2 + 1, [block[:, :4] for block in blocks(2, 4)]
    targets = torch.cat([gathered(F.layer_norm(h, (D,)), block) for block in ids for _ in range(3)])  # three contexts
    pred = normal(2 * 3 * N, 4, D, seed=1)
    check(lambda p: masked_latent_loss(p, h, ids), lambda p: F.smooth_l1_loss(p, targets), pred)
    whole = torch.cat([block for block in ids for _ in range(3)])
    assert torch.equal(masked_latent_loss(pred, h, ids), masked_latent_loss(pred, h, whole))


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_v_jepa_2(exponent):
    """The mean over masks, which differ in length, of the mean of |e|^q / q."""
    h, ids = normal(N, L, D), blocks(3, 2)
    preds = [normal(*block.shape, D, seed=block.shape[1]) for block in ids]
    sizes = [p.shape[1] for p in preds]

    def theirs(flat):
        parts = flat.split(sizes, 1)
        targets = [gathered(F.layer_norm(h, (D,)), block) for block in ids]
        return sum(((z - t).abs() ** exponent).mean() / exponent for z, t in zip(parts, targets, strict=True)) / len(ids)

    check(lambda flat: masked_latent_loss(flat.split(sizes, 1), h, ids, loss=exponent), theirs, torch.cat(preds, 1))


@pytest.mark.parametrize("beta", [0, 2.0])
def test_data2vec(beta):
    """Smooth L1, or the square where beta is 0 in its code, at all tokens of a mask as weights; targets come normalised."""
    h, mask, pred = normal(N, L, D), blocks(1, 5)[0] < 3, normal(N, L, D, seed=1)
    mask = F.pad(mask, (0, L - mask.shape[1]))
    how = {"loss": "smooth_l1", "beta": beta} if beta else {"loss": "l2"}

    def theirs(p):
        each = F.smooth_l1_loss(p, h, reduction="none", beta=beta) if beta else F.mse_loss(p, h, reduction="none")
        return each[mask].mean()

    check(lambda p: masked_latent_loss(p, h, weight=mask, normalize=False, **how), theirs, pred)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16,) * 2], ids=str)
def test_dtypes_may_differ(dtypes):
    pred, h, ids = normal(N, 4, D, dtype=dtypes[0]), normal(N, L, D, dtype=dtypes[1]), blocks(1, 4)[0]
    loss, gradient = value_and_gradient(lambda p: masked_latent_loss(p, h, ids), pred)
    truth, wanted = value_and_gradient(lambda p: masked_latent_loss(p, h.double(), ids), pred.double())
    assert loss.dtype == torch.float32 and gradient.dtype == dtypes[0]
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=1e-6)


def test_a_small_mean_of_float16_keeps_its_gradient_under_a_gradient_scaler():
    """1 / (P K D) is below float16's smallest number here; with the scale of 65,536 the gradients are ordinary numbers."""
    pred, h = normal(64, 64, 1024, dtype=torch.float16), torch.zeros(64, 64, 1024, dtype=torch.float16)
    pred.requires_grad_()
    (65536.0 * masked_latent_loss(pred, h, loss="l1", normalize=False)).backward()
    size = 65536.0 / pred.numel()
    assert ((pred.grad.abs().double() - size).abs() <= size * 2**-10)[pred != 0].all()


def test_one_row_all_tokens_repeated_ids_and_rows_that_are_apart():
    h = normal(N, L, D)
    check(lambda p: masked_latent_loss(p, h[:1, :1]), lambda p: F.smooth_l1_loss(p, F.layer_norm(h[:1, :1], (D,))), normal(1, 1, D))
    order = blocks(1, L)[0]
    every = gathered(F.layer_norm(h, (D,)), order)
    check(lambda p: masked_latent_loss(p, h, order, loss="l2"), lambda p: F.mse_loss(p, every), normal(N, L, D, seed=1))
    same = torch.zeros(N, 5, dtype=torch.int64)
    check(lambda p: masked_latent_loss(p, h, same), lambda p: masked_latent_loss(p, h[:, :1].expand(-1, 5, -1)), normal(N, 5, D))
    wide = normal(N, D, 2 * L).transpose(1, 2)  # neither rows nor columns are neighbours
    ids = blocks(1, 4)[0]
    for spoiled in (wide[:, ::2], wide[:, :L].contiguous()[:, 1:], torch.cat([h, h], 2)[..., :D]):
        ids = ids % spoiled.shape[1]
        plain = spoiled.contiguous()
        check(lambda p, t=spoiled: masked_latent_loss(p, t, ids), lambda p, t=plain: masked_latent_loss(p, t, ids), normal(N, 4, D))  # noqa: B023
    strided = normal(4, N, 2 * D).transpose(0, 1)[..., ::2]
    found = [value_and_gradient(lambda p: masked_latent_loss(p, h, blocks(1, 4)[0]), p) for p in (strided, strided.contiguous())]
    torch.testing.assert_close(*found)


def test_rows_of_weight_0_are_not_read_and_no_weight_gives_0():
    h, ids, weight = normal(N, L, D), blocks(1, 4)[0], torch.ones(N, 4)
    pred = normal(N, 4, D, seed=1)
    weight[1, 2], pred[1, 2] = 0.0, torch.nan
    loss, gradient = value_and_gradient(lambda p: masked_latent_loss(p, h, ids, weight=weight), pred)
    assert loss.isfinite() and gradient.isfinite().all() and not gradient[1, 2].any()
    _, infinite = value_and_gradient(lambda p: torch.inf * masked_latent_loss(p, h, ids, weight=weight), pred)
    assert not infinite[1, 2].any() and infinite[0, 0].isinf().all()
    assert masked_latent_loss(pred, h, ids, weight=torch.zeros(N, 4)).item() == 0.0
    torch.testing.assert_close(masked_latent_loss(pred, h, ids, weight=3e38 * weight), loss)  # whose sum is no float


def test_constant_rows_and_what_is_not_a_number():
    constant = torch.full((N, L, D), 7.0)
    assert masked_latent_loss(torch.zeros(N, L, D), constant).item() == 0.0
    pred = normal(N, L, D)
    pred[0, 0, 3] = torch.nan
    for loss in ("l1", "l2", "smooth_l1", 1.5):
        value, gradient = value_and_gradient(lambda p, loss=loss: masked_latent_loss(p, constant, loss=loss), pred)
        assert value.isnan() and gradient.isnan().sum() == 1


def test_numbers_of_threads_change_no_bit():
    pred, h, ids = normal(6, 500, D), normal(3, 700, D), torch.randint(700, (6, 500), generator=torch.Generator().manual_seed(0))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(value_and_gradient(lambda p: masked_latent_loss(p, h, ids), pred))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for more in found[1:] for a, b in zip(more, found[0], strict=True))


PRED, H, IDS = torch.zeros(4, 3, 5), torch.zeros(2, 6, 5), torch.zeros(4, 3, dtype=torch.int64)
of = masked_latent_loss


@pytest.mark.parametrize(
    "error, said, call",
    [
        (ValueError, r"ids must be in \[0, 6\), got 6", lambda: of(PRED, H, IDS + 6)),
        (ValueError, r"ids must be in \[0, 6\), got -1", lambda: of(PRED, H, IDS - 1)),
        (TypeError, "ids must be int64", lambda: of(PRED, H, IDS.int())),
        (ValueError, "ids must have shape .* 4 rows", lambda: of(PRED, H, IDS[:2])),
        (ValueError, r"pred must have shape \(4, 2, 5\), got \(4, 3, 5\) \(follows from ids\)", lambda: of(PRED, H, IDS[:, :2])),
        (ValueError, r"pred must have shape \(4, 6, 5\), got \(4, 3, 5\) \(follows from target, since no ids", lambda: of(PRED, H)),
        (ValueError, r"pred must have shape \(2 or a multiple of it, K, 5\)", lambda: of(PRED[:3], H, IDS[:3])),
        (ValueError, r"pred must have shape .* no side of it 0", lambda: of(PRED[:, :0], H, IDS[:, :0])),
        (ValueError, r"target must have shape .* no side of it 0", lambda: of(PRED, H[:, :0], IDS)),
        (TypeError, "pred and target must both be float64 or neither", lambda: of(PRED.double(), H, IDS)),
        (ValueError, "loss must be one of", lambda: of(PRED, H, IDS, loss="huber")),
        (ValueError, "loss must be at least 1", lambda: of(PRED, H, IDS, loss=0.5)),
        (TypeError, "loss must be one of", lambda: of(PRED, H, IDS, loss=None)),
        (ValueError, "beta must be at least 0", lambda: of(PRED, H, IDS, beta=-1)),
        (ValueError, "eps must be at least 0", lambda: of(PRED, H, IDS, eps=math.nan)),
        (ValueError, "reduction must be one of", lambda: of(PRED, H, IDS, reduction="max")),
        (ValueError, r"weight must have shape \(4, 3\)", lambda: of(PRED, H, IDS, weight=torch.ones(4))),
        (ValueError, "weight must hold numbers that are at least 0", lambda: of(PRED, H, IDS, weight=-torch.ones(4, 3))),
        (TypeError, "weight must be bool or float", lambda: of(PRED, H, IDS, weight=IDS)),
        (NotImplementedError, "target must not require a gradient", lambda: of(PRED, H.clone().requires_grad_(), IDS)),
        (ValueError, "ids must be a sequence of 2 tensors", lambda: of([PRED, PRED], H, [IDS])),
        (ValueError, "reduction must be mean or sum", lambda: of([PRED], H, [IDS], reduction="none")),
        (ValueError, "weight must be None", lambda: of([PRED], H, [IDS], weight=torch.ones(4, 3))),
        (ValueError, "ids of one pred must all have 3 columns, got 2", lambda: of(PRED, H, [IDS[:2], IDS[:2, :2]])),
        (ValueError, "pred must have a multiple of 6 rows", lambda: of(PRED, H, [IDS[:2]] * 3)),
    ],
)  # fmt: skip
def test_refusals(error, said, call):
    with pytest.raises(error, match=said):
        call()
