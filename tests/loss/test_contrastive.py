"""InfoNCE, CLIP, SigLIP, SupCon, MoCo and their variants, compared with the libraries that people use, and at their edges."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.peers import ready_torchvision
from fastssl import functional, loss
from fastssl.testing import contrastive
from fastssl.testing.compare import relative_error
from fastssl.testing.inputs import image_text, image_text_bias, keys_and_negatives, moco_inputs, sup_con_inputs, two_views


def value_and_grads(call, inputs):
    inputs = {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
    out = call(**inputs)
    out.sum().backward()
    return out.detach(), {name: t.grad for name, t in inputs.items() if t.requires_grad}


def assert_same(ours, theirs, inputs, limit=1e-5):
    """The loss and every gradient agree to ``limit``, or to twice the library's own distance from float64."""
    (got, grads), (want, want_grads) = value_and_grads(ours, inputs), value_and_grads(theirs, inputs)
    wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    truth, true_grads = value_and_grads(theirs, wide)
    for name, ours_, theirs_, true in (("loss", got, want, truth), *((n, grads[n], want_grads[n], true_grads[n]) for n in grads)):
        assert relative_error(ours_, true) <= max(limit, 2 * relative_error(theirs_, true)), name


# --- the libraries ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_clip_losses():
    pytest.importorskip("ftfy")
    ready_torchvision()
    return pytest.importorskip("open_clip.loss")


@pytest.mark.parametrize("shape", [(7, 16), (300, 64)])
def test_clip_and_siglip_equal_open_clip(open_clip_losses, shape):
    ours, theirs = loss.ClipLoss(), open_clip_losses.ClipLoss()
    wrap = lambda f: lambda image, text, logit_scale: f(image, text, logit_scale)  # noqa: E731
    assert_same(wrap(ours), wrap(theirs), image_text(shape))
    ours, theirs = loss.SigLipLoss(), open_clip_losses.SigLipLoss()
    wrap = lambda f: lambda image, text, logit_scale, logit_bias: f(image, text, logit_scale, logit_bias)  # noqa: E731
    assert_same(wrap(ours), wrap(theirs), image_text_bias(shape))
    assert loss.ClipLoss()(**_named(image_text(shape)), output_dict=True).keys() == {"contrastive_loss"}


def _named(inputs):
    return {"image_features": inputs["image"], "text_features": inputs["text"], "logit_scale": inputs["logit_scale"]}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_info_nce_equals_info_nce_pytorch(reduction):
    theirs = pytest.importorskip("info_nce").info_nce
    inputs = keys_and_negatives((40, 24))
    pairs = {name: inputs[name] for name in ("query", "positive_key")}
    options = {"temperature": 0.1, "reduction": reduction}
    assert_same(partial(functional.info_nce, **options), partial(theirs, **options), pairs)
    assert_same(partial(functional.info_nce, **options), partial(theirs, **options), inputs)
    options["negative_mode"] = "paired"
    paired = keys_and_negatives((40, 24), paired=True)
    assert_same(partial(functional.info_nce, **options), partial(theirs, **options), paired)
    module = loss.InfoNCELoss(0.1, reduction, "paired")
    torch.testing.assert_close(module(**paired), functional.info_nce(**paired, **options))


def test_sup_con_equals_pytorch_metric_learning():
    ready_torchvision()
    theirs = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss(temperature=0.1)
    labels = torch.arange(60) % 13

    def pml(features):
        return theirs(features.transpose(0, 1).flatten(0, 1), labels.repeat(features.shape[1]))

    ours = partial(functional.sup_con, labels=labels, temperature=0.1, normalize=True)
    assert_same(ours, pml, sup_con_inputs((60, 24), views=2))


# --- InfoNCE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_false_negatives_and_label_smoothing(symmetric, smoothing):
    inputs = two_views((50, 16))
    ids = torch.arange(50) // 3

    def eager(z0, z1):
        s = contrastive.logits(contrastive.unit(z0), contrastive.unit(z1), 10.0)
        s = s.masked_fill((ids[:, None] == ids) & ~contrastive.diagonal(s), -math.inf)
        ways = [contrastive._smoothed(t, smoothing) for t in ((s, s.T) if symmetric else (s,))]
        return torch.stack(ways).mean()

    assert_same(lambda z0, z1: functional.info_nce(z0, z1, ids=ids, label_smoothing=smoothing, symmetric=symmetric), eager, inputs)


def test_label_smoothing_is_that_of_cross_entropy():
    inputs = keys_and_negatives((30, 12))
    q, k, n = (contrastive.unit(t) for t in inputs.values())
    s = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], 1) / 0.1
    want = F.cross_entropy(s, torch.zeros(30, dtype=torch.int64), label_smoothing=0.3)
    torch.testing.assert_close(functional.info_nce(**inputs, label_smoothing=0.3), want)
    s = q @ k.T / 0.1
    want = F.cross_entropy(s, torch.arange(30), label_smoothing=0.3)
    torch.testing.assert_close(functional.info_nce(q, k, label_smoothing=0.3), want)


@pytest.mark.parametrize("weight", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("extra", [20, 7])
def test_hard_negatives(weight, extra):
    if weight and extra != 20:
        with pytest.raises(ValueError, match="one hard negative for each query"):
            functional.info_nce(
                torch.randn(20, 4), torch.randn(20, 4), hard_negative_keys=torch.randn(7, 4), hard_negative_weight=1.0
            )
        return
    inputs = keys_and_negatives((20, 8))
    inputs = {
        "query": inputs["query"],
        "positive_key": inputs["positive_key"],
        "hard_negative_keys": inputs["negative_keys"][:extra],
    }
    ours = partial(functional.info_nce, temperature=0.05, hard_negative_weight=weight)
    if extra == 20:
        assert_same(ours, partial(contrastive.info_nce_hard, weight=weight), inputs)
    ids = torch.arange(20) // 2

    def eager(query, positive_key, hard_negative_keys):
        s = contrastive.unit(query) @ contrastive.unit(torch.cat([positive_key, hard_negative_keys])).T / 0.05
        same = (ids[:, None] == ids) & ~torch.eye(20, dtype=torch.bool)
        return F.cross_entropy(s.masked_fill(F.pad(same, (0, extra)), -math.inf), torch.arange(20))

    if not weight:
        assert_same(partial(ours, ids=ids), eager, inputs)


def test_without_gradient_only_the_forward_runs():
    q, k = two_views((10, 4)).values()
    image, text, scale, bias = image_text_bias((10, 4)).values()
    calls = [
        lambda: functional.info_nce(q, k, symmetric=True),
        lambda: functional.clip_loss(image, text, scale),
        lambda: functional.siglip_loss(image, text, scale, bias),
        lambda: functional.moco_loss(image, text, torch.randn(4, 9)),
        lambda: functional.sup_con(torch.stack([q, k], 1), torch.arange(10)),
    ]
    for call in calls:
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            q.requires_grad_(), image.requires_grad_()
            assert not call().requires_grad
        ours = {event.key for event in profile.key_averages() if event.key.startswith("fastssl::")}
        assert ours and not any("bwd" in name or "one_pass" in name for name in ours), ours


# --- CLIP, SigLIP ----------------------------------------------------------------------------------------------------


def test_clip_does_not_see_the_bias_and_its_gradient_is_zero():
    inputs = image_text_bias((12, 6))
    got, grads = value_and_grads(functional.clip_loss, inputs)
    torch.testing.assert_close(got, functional.clip_loss(inputs["image"], inputs["text"], inputs["logit_scale"]))
    assert grads["logit_bias"] == 0


def test_clip_normalises_where_asked():
    views = two_views((12, 6))
    unit = [F.normalize(t, dim=1) for t in views.values()]
    torch.testing.assert_close(functional.clip_loss(*views.values(), 10.0, normalize=True), functional.clip_loss(*unit, 10.0))
    both = [functional.siglip_loss(*t, 10.0, -3.0, normalize=n) for t, n in ((views.values(), True), (unit, False))]
    torch.testing.assert_close(*both)


def test_clip_small_loss_keeps_its_digits():
    z = F.normalize(torch.randn(30, 64), dim=1)
    got, want = functional.clip_loss(z, z, 30.0), contrastive.clip(z.double(), z.double(), 30.0)
    assert 0 < want < 1e-6 and abs(got - want) < 1e-4 * want


def test_siglip_ids_with_an_image_without_text():
    """Weights of rows or columns without a positive are 0, not infinite."""
    inputs = image_text_bias((6, 5))
    ids = {"image_id": torch.tensor([1, 1, 2, 3, 9, 2**40]), "text_id": torch.tensor([1, 2, 2, 4, 9, 9])}
    for balanced in (False, True):
        ours = partial(functional.siglip_loss, **ids, weighting="balanced" if balanced else "none")
        assert_same(ours, partial(contrastive.siglip, **ids, balanced=balanced), inputs)


@pytest.mark.parametrize("scale", [1e3, -1e3, 0.0])
def test_siglip_at_extreme_logits(scale):
    inputs = image_text_bias((40, 8)) | {"logit_scale": torch.tensor(scale)}
    assert_same(functional.siglip_loss, contrastive.siglip, inputs)


# --- MoCo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["dk", "kd"])
def test_the_queue_may_be_overwritten_before_the_backward(layout):
    inputs = moco_inputs((33, 16))
    queue = F.normalize(torch.randn(16, 500), dim=0)
    given = queue if layout == "dk" else queue.T.contiguous()
    want, want_grads = value_and_grads(partial(contrastive.moco, queue=queue), inputs)

    def overwritten(query, key):
        held = given.clone()
        out = functional.moco_loss(query, key, held, layout=layout)
        held.fill_(math.nan)
        return out

    got, grads = value_and_grads(overwritten, inputs)
    torch.testing.assert_close(got, want)
    for name in grads:
        torch.testing.assert_close(grads[name], want_grads[name])
    torch.testing.assert_close(loss.MoCoLoss(0.07, layout)(inputs["query"], inputs["key"], given), want)


def test_a_float32_queue_serves_half_precision_queries():
    inputs, queue = moco_inputs((20, 16), torch.bfloat16), F.normalize(torch.randn(16, 300), dim=0)
    got, grads = value_and_grads(partial(functional.moco_loss, queue=queue), inputs)
    want, _ = value_and_grads(partial(contrastive.moco, queue=queue), {n: t.float() for n, t in inputs.items()})
    torch.testing.assert_close(got, want)
    assert grads["query"].dtype == torch.bfloat16


def test_moco_memory_does_not_grow_with_the_queue():
    from benchmarks.core import memory
    from benchmarks.core.registry import WORKLOADS

    peak, reason = memory.measure(WORKLOADS["moco"], (1024, 65536, 128), torch.float32, "fastssl")
    assert peak is not None and peak < 16, (peak, reason)


def test_moco_v3_is_two_tau_times_info_nce_with_constant_keys():
    views = {"query": torch.randn(20, 8), "key": torch.randn(20, 8, requires_grad=True)}
    got, grads = value_and_grads(lambda query, key: functional.moco_v3_loss(query, key, 0.2), views)
    want = 0.4 * contrastive.info_nce(views["query"], views["key"], 0.2)
    torch.testing.assert_close(got, want.detach())
    assert grads["key"] is None


# --- SupCon ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("positives", ["labels", "mask", "soft mask", "neither"])
def test_sup_con_against_the_masked_form(views, mode, positives):
    inputs = sup_con_inputs((30, 12), views=views)
    given = {}
    if positives == "labels":
        given["labels"] = torch.randint(-5, 5, (30,)) * 2**33
    elif "mask" in positives:
        given["mask"] = (torch.rand(30, 30) < 0.3).float() * (torch.rand(30, 30) if "soft" in positives else 1.0)
    ours = partial(functional.sup_con, contrast_mode=mode, **given)
    assert_same(ours, partial(contrastive.sup_con, contrast_mode=mode, **given), inputs)


def test_sup_con_scales():
    features = sup_con_inputs((10, 6))["features"]
    base = functional.sup_con(features, temperature=0.1)
    torch.testing.assert_close(functional.sup_con(features, temperature=0.1, base_temperature=0.07), base * 0.1 / 0.07)
    torch.testing.assert_close(loss.SupConLoss(0.1)(features), base * 0.1 / 0.07)
    rows = functional.sup_con(features, temperature=0.1, reduction="none")
    assert rows.shape == (30,)
    torch.testing.assert_close(rows.mean(), base)
    flat = features.unflatten(2, (2, 3))
    torch.testing.assert_close(functional.sup_con(flat, temperature=0.1), base)


def test_anchors_without_positives_count_as_zero():
    features = sup_con_inputs((6, 4), views=1)["features"].requires_grad_()
    out = functional.sup_con(features, torch.arange(6))
    assert out == 0
    out.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_sup_con_of_two_views_is_nt_xent():
    features = sup_con_inputs((16, 8), views=2)["features"]
    want = functional.nt_xent(features[:, 0], features[:, 1], 0.07, normalize=False)
    torch.testing.assert_close(functional.sup_con(features), want)
    torch.testing.assert_close(functional.sup_con(features, torch.arange(16)), want)


# --- corrected negatives, Matryoshka, nearest neighbours ---------------------------------------------------------------


def rounding_of_the_difference(z0, z1, temperature, tau_plus, beta) -> float:
    """The relative error that rounding explains in the least favourable row.

    G_i - tau_plus N e^p_i loses the digits that its two terms have in common, and the terms are off by the rounding of their
    exponents, which are as large as (1 + beta) / temperature.
    """
    z = F.normalize(torch.cat([z0, z1]).double(), dim=1)
    b, s = len(z0), z @ z.T / temperature
    row = torch.arange(2 * b)
    other = row[:, None] % b != row % b
    hard, soft = (torch.where(other, (k * s).exp(), 0.0).sum(1) for k in (1 + beta, beta))
    share = tau_plus * s[row, (row + b) % (2 * b)].exp() * soft / hard
    left = torch.where(share < 1, 1 - share, 1.0).min()  # where nothing is left of the difference, the loss takes its floor
    return float(4 * 2.0**-24 * (1 + beta) / temperature / left)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_hard_and_debiased_against_the_published_form(temperature, tau_plus, beta):
    options = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta}
    inputs = two_views((40, 16))
    limit = max(1e-5, rounding_of_the_difference(**inputs, **options))
    assert_same(partial(functional.hard_nt_xent, **options), partial(contrastive.hard_nt_xent, **options), inputs, limit)
    if beta == 0.0 and tau_plus == 0.0:
        torch.testing.assert_close(
            functional.debiased_nt_xent(*two_views((40, 16)).values(), temperature, tau_plus=0.0),
            functional.nt_xent(*two_views((40, 16)).values(), temperature),
        )


def test_matryoshka():
    inputs = two_views((20, 16))
    ours = partial(functional.matryoshka, partial(functional.info_nce, temperature=0.1), dims=(4, 9, 16), weights=(1.0, 0.5, 2.0))
    parts = ((4, 1.0), (9, 0.5), (16, 2.0))
    assert_same(
        lambda z0, z1: ours(z0, z1),
        lambda z0, z1: sum(w * contrastive.info_nce(z0[:, :d], z1[:, :d]) for d, w in parts),
        inputs,
    )
    for dims in ((), (0,), (17,), (2.5,)):
        with pytest.raises(ValueError, match="dims must be whole numbers"):
            functional.matryoshka(functional.info_nce, *inputs.values(), dims=dims)


def test_nearest_neighbor(monkeypatch):
    from fastssl.loss import variants

    query, bank = torch.randn(50, 8), torch.randn(300, 8)
    want = (query @ bank.T).argmax(1)
    monkeypatch.setattr(variants, "BLOCK_ELEMENTS", 7 * 300)
    assert torch.equal(functional.nearest_neighbor(query, bank), want)
    second = functional.nearest_neighbor(query, bank, exclude=want)
    assert torch.equal(second, (query @ bank.T).topk(2).indices[:, 1])
    assert torch.equal(functional.nearest_neighbor(query, bank, exclude=torch.full((50,), -1)), want)


@pytest.mark.parametrize("name", ["info_nce", "clip_loss", "siglip_loss"])
def test_the_same_tensor_on_both_sides_compiles(name):
    z = F.normalize(torch.randn(6, 5), dim=1).requires_grad_()
    given = {"info_nce": (), "clip_loss": (5.0,), "siglip_loss": (5.0, -1.0)}[name]
    call = lambda t: getattr(functional, name)(t, t, *given)  # noqa: E731
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(z), call(z))


def test_matryoshka_takes_numpys_integers_and_no_bools():
    a, b = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
    want = functional.matryoshka(functional.nt_xent, a, b, dims=[3, 8])
    assert torch.equal(functional.matryoshka(functional.nt_xent, a, b, dims=[np.int64(3), np.int32(8)]), want)
    with pytest.raises(ValueError, match="matryoshka: dims must be whole numbers"):
        functional.matryoshka(functional.nt_xent, a, b, dims=[True])
