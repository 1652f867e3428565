"""Inputs as users give them: mixed dtypes under autocast, schedules in compiled graphs, temperatures of any shape, NaN."""

import importlib
import math
import subprocess
import sys
from functools import partial

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import fastssl
from fastssl import functional, loss
from fastssl.functional import (
    alignment,
    clip_loss,
    contrastive,
    contrastive_pairs,
    dcl,
    debiased_nt_xent,
    hard_nt_xent,
    info_nce,
    lifted_structured,
    matryoshka,
    moco_loss,
    moco_v3_loss,
    n_pair,
    nce,
    nearest_neighbor,
    negative_sampling,
    nt_xent,
    siglip_loss,
    similarity_lse,
    soft_nearest_neighbor,
    sup_con,
    triplet,
    triplet_batch,
    uniformity,
)
from fastssl.loss.parts import local_rows
from fastssl.testing.cases import CASES
from fastssl.testing.inputs import two_views
from tests.support import older_losses

A, B = two_views((16, 8)).values()
LABELS = torch.arange(16) % 5


def _sides(inputs) -> list[str]:
    return [name for name, t in inputs.items() if t.dim() > 1]


def _mixed_calls():
    internal = ("similarity_cross", "sigmoid_pair")
    for name, case in CASES.items():
        inputs = case.inputs(case.shape(6, 5))
        if (len(_sides(inputs)) > 1 and name not in internal and case.logits) or name == "similarity_two_sided":
            yield pytest.param(case.ours, inputs, id=name)
    for name in older_losses.CASES:
        inputs = older_losses.make_inputs(name)
        if len(_sides(inputs)) > 1 and not any(
            word in name for word in ("own", "index", "squared", "alignment 0.5", "alignment 3")
        ):
            yield pytest.param(older_losses.CASES[name][1], inputs, id=name)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("call, inputs", _mixed_calls())
def test_sides_of_two_dtypes_are_legal_under_autocast_alone(call, inputs, narrow):
    """One side after the other is narrow: the loss is that of the widened side, and each gradient has the dtype of its input."""
    for name in _sides(inputs):
        mixed = {key: (t.to(narrow) if key == name else t).requires_grad_() for key, t in inputs.items()}
        wide = {key: t.detach().to(inputs[key].dtype).requires_grad_() for key, t in mixed.items()}
        with torch.autocast("cpu", torch.bfloat16):
            got = call(**mixed)
            with pytest.raises(TypeError, match="must have the same dtype"), torch.autocast("cpu", enabled=False):
                call(**mixed)
        want = call(**wide)
        torch.testing.assert_close(got, want)  # plain float32 tensors may go another way, which rounds elsewhere
        grads, want_grads = (torch.autograd.grad(t.sum(), list(leaves.values())) for t, leaves in ((got, mixed), (want, wide)))
        for g, w, t in zip(grads, want_grads, mixed.values(), strict=True):
            assert g.dtype == t.dtype
            torch.testing.assert_close(g, w.to(g.dtype), rtol=torch.finfo(g.dtype).eps * 8, atol=1e-6)


def test_bfloat16_and_float16_meet_in_float32_under_autocast():
    z0, z1 = A.bfloat16(), B.half()
    bank = loss.NTXentLoss(memory_bank_size=(20, 8))
    bank(A, B)
    rows, ids = bank.memory_bank.bank.clone(), torch.arange(16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(z0, z1), nt_xent(z0.float(), z1.float()))
        assert torch.equal(nearest_neighbor(z0, z1, exclude=ids), nearest_neighbor(z0.float(), z1.float(), exclude=ids))
        assert torch.equal(moco_loss(z0, z1, A.half().t()), moco_loss(z0.float(), z1.float(), A.half().t()))
        first = bank(z0, z1)
        assert torch.equal(functional.nce_log_z(z0, z1, n=9), functional.nce_log_z(z0.float(), z1.float(), n=9))
    assert torch.equal(first, bank(z0.float(), z1.float())) and torch.equal(rows, bank.memory_bank.bank)
    wide = torch.randn(16, 8, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert clip_loss(A, wide, 1.0).dtype == torch.float64


# --- schedules in a compiled graph -----------------------------------------------------------------------------------

SCHEDULED = {
    "nt_xent": lambda a, b, t: nt_xent(a, b, t),
    "nt_xent sums": lambda a, b, t: nt_xent(a, b, t, normalize=False, reduction="none").sum(),
    "dcl": lambda a, b, t: dcl(a, b, t),
    "hard": lambda a, b, t: hard_nt_xent(a, b, t, tau_plus=t / 4, beta=2 * t),
    "debiased": lambda a, b, t: debiased_nt_xent(a, b, t),
    "info_nce": lambda a, b, t: info_nce(a, b, temperature=t, label_smoothing=t / 2, return_stats=True)[0],
    "info_nce symmetric": lambda a, b, t: info_nce(a, b, temperature=t, symmetric=True),
    "info_nce weighted": lambda a, b, t: info_nce(a, b, temperature=0.5, hard_negative_keys=b + 1, hard_negative_weight=t),
    "info_nce passages": lambda a, b, t: info_nce(a, b, temperature=t, margin=4 * t, relative_margin=t),
    "clip": lambda a, b, t: clip_loss(a, b, 10 * t, label_smoothing=t / 2),
    "siglip": lambda a, b, t: siglip_loss(a, b, 10 * t, -t),
    "moco": lambda a, b, t: moco_loss(a, b, b.t(), t),
    "moco_v3": lambda a, b, t: moco_v3_loss(a, b, t),
    "sup_con": lambda a, b, t: sup_con(torch.stack([a, b], 1), LABELS, temperature=t, base_temperature=t / 2 + 0.1),
    "contrastive": lambda a, b, t: contrastive(a, b, LABELS, t) + contrastive_pairs(a, LABELS, t / 10, t),
    "triplet": lambda a, b, t: triplet(a, b, b + 1, t) + triplet_batch(a, LABELS, t) + triplet_batch(a, LABELS, t, mining="hard"),
    "lifted": lambda a, b, t: lifted_structured(a, LABELS, t),
    "n_pair": lambda a, b, t: n_pair(a, b, t) + alignment(a, b, t) + uniformity(a, t),
    "nce": lambda a, b, t: nce(a, b, b, t, n=100, log_z=t / 2) + negative_sampling(a, b, b, t),
    "neighbours": lambda a, b, t: soft_nearest_neighbor(a, LABELS, t),
    "similarity_lse": lambda a, b, t: similarity_lse(a, b, scale=t).sum(),
    "matryoshka": lambda a, b, t: matryoshka(nt_xent, a, b, dims=[2, 4], weights=[t, 1.0]),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_number_that_follows_a_schedule_makes_two_graphs_at_most(name):
    """As many graphs as eager PyTorch makes, whose first graph also holds the number as a constant; so with the backward."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(SCHEDULED[name], backend="aot_eager", fullgraph=True)
    for t in (0.5, 0.45, 0.4):
        a, b = (A.clone().requires_grad_(name in ("nt_xent", "info_nce symmetric", "moco", "siglip", "sup_con")) for _ in range(2))
        got, want = compiled(a, B, t), SCHEDULED[name](b, B, t)
        torch.testing.assert_close(got, want)
        if a.requires_grad:
            torch.testing.assert_close(torch.autograd.grad(got, a), torch.autograd.grad(want, b))
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_scheduled_module_and_a_refusal_in_a_compiled_graph():
    criterion = loss.NTXentLoss(0.5)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(criterion, backend="aot_eager")
    for t in (0.5, 0.45, 0.4, 0.35):
        criterion.temperature = t
        torch.testing.assert_close(compiled(A, B), nt_xent(A, B, t))
    assert counters["stats"]["unique_graphs"] <= 2
    with pytest.raises(ValueError, match="temperature"):
        torch.compile(nt_xent, backend="aot_eager")(A, B, 0.0)


# --- temperatures of one element -------------------------------------------------------------------------------------

ONE_TEMPERATURE = {
    "nt_xent": lambda t: nt_xent(A, B, t),
    "dcl": lambda t: dcl(A, B, t),
    "hard": lambda t: hard_nt_xent(A, B, t),
    "debiased": lambda t: debiased_nt_xent(A, B, t),
    "info_nce": lambda t: info_nce(A, B, temperature=t, label_smoothing=0.1, return_stats=True)[0],
    "info_nce symmetric": lambda t: info_nce(A, B, temperature=t, symmetric=True, return_stats=True)[0],
    "info_nce unpaired": lambda t: info_nce(A, B, B + 1, t, return_stats=True)[0],
    "info_nce paired": lambda t: info_nce(A, B, torch.stack([B, A], 1), t, negative_mode="paired", return_stats=True)[0],
    "info_nce weighted": lambda t: info_nce(A, B, hard_negative_keys=B + 1, hard_negative_weight=0.3, temperature=t),
    "clip": lambda t: clip_loss(A, B, t, t, label_smoothing=0.1),
    "siglip": lambda t: siglip_loss(A, B, t, t),
    "moco": lambda t: moco_loss(A, B, B.t(), t, return_stats=True)[0],
    "moco_v3": lambda t: moco_v3_loss(A, B, t),
    "sup_con": lambda t: sup_con(torch.stack([A, B], 1), LABELS, temperature=t, base_temperature=0.07),
    "sup_con of pairs": lambda t: sup_con(torch.stack([A, B], 1), temperature=t, base_temperature=t),
    "nce": lambda t: nce(A, B, B, t, n=9, log_z=t),
    "negative_sampling": lambda t: negative_sampling(A, B, B, t),
    "soft_nearest_neighbor": lambda t: soft_nearest_neighbor(A, LABELS, t),
    "uniformity": lambda t: uniformity(A, t),
}


@pytest.mark.parametrize("name", ONE_TEMPERATURE)
def test_a_temperature_of_one_element_may_have_any_shape_and_dtype(name):
    call = ONE_TEMPERATURE[name]
    want, grad = _loss_and_slope(call, torch.tensor(0.5))
    torch.testing.assert_close(call(0.5), want)
    for shape in ((1,), (1, 1), (1, 1, 1)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            got, slope = _loss_and_slope(call, torch.full(shape, 0.5, dtype=dtype))
            assert got.shape == () and got.dtype == torch.float32 and slope.shape == shape and slope.dtype == dtype
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(slope.flatten(), grad.flatten().to(dtype))


def _loss_and_slope(call, t):
    t.requires_grad_()
    loss = call(t)
    return loss.detach(), torch.autograd.grad(loss, t)[0]


# --- values at the edge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 3])
def test_ids_at_both_ends_of_int64_are_ids_like_any(extra):
    """The positive is the only key of its id that counts, and hard negatives have no id."""
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    kind = torch.arange(16) % 4
    ids = torch.tensor([low, high, 0, high - 1])[kind]
    hard = {"hard_negative_keys": torch.randn(extra, 8)} if extra else {}
    z0, z1 = (F.normalize(t.double(), dim=1) for t in (A, B))
    columns = torch.cat([z1, *(F.normalize(t.double(), dim=1) for t in hard.values())])
    same = F.pad((kind[:, None] == kind) & ~torch.eye(16, dtype=torch.bool), (0, extra))
    want = F.cross_entropy((z0 @ columns.T / 0.1).masked_fill(same, -math.inf), torch.arange(16))
    torch.testing.assert_close(info_nce(A, B, ids=ids, **hard).double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(info_nce(A, B, ids=ids, **hard), info_nce(A, B, ids=kind, **hard))


def test_what_is_nan_stays_nan():
    nan, one = torch.full((6, 8), math.nan), torch.zeros(6, dtype=torch.int64)
    for call in (
        lambda: alignment(nan, A[:6]),
        lambda: alignment(A[:6], A[:6].clone().index_fill(0, torch.tensor([2]), math.nan)),
        lambda: soft_nearest_neighbor(nan, one),
        lambda: lifted_structured(nan, one),
        lambda: triplet_batch(nan, LABELS[:6]),
        lambda: contrastive_pairs(nan, LABELS[:6]),
        lambda: sup_con(nan[:, None], LABELS[:6]),
        lambda: uniformity(nan),
    ):
        assert call().isnan()
    negative = A.clone()
    negative[3] = math.nan
    for call in (hard_nt_xent, debiased_nt_xent, nt_xent, dcl):
        assert call(negative, B, reduction="none").isnan().all()
    own = torch.stack([A, B], 1)
    own[3] = math.nan
    assert sup_con(own[:, :1], torch.arange(16), reduction="none").isnan().all()
    stats = info_nce(negative, B, return_stats=True)[1]
    assert stats.acc1.isnan() and stats.acc5.isnan() and stats.loss.isnan().sum() >= 1
    assert not info_nce(A, B, return_stats=True)[1].acc1.isnan()


def test_a_nan_of_any_bits_stays_and_also_under_a_scale_of_0(isa):
    """A fast exponential may turn a NaN whose bits are all 1 into a number, and a BLAS may take 0 times NaN for 0."""
    for bits in (0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -0x400000):
        for width in (1, 3, 40):
            x, y = torch.randn(7, width), torch.randn(9, width)
            y[4, 0] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)[0]
            for scale in (0.5, 100.0, 0.0):
                assert similarity_lse(x, y, scale=scale).isnan().all()
                assert similarity_lse(x.requires_grad_(), y, scale=scale).isnan().all()
                assert siglip_loss(x.detach(), y[:7], scale, 0.0).isnan() and clip_loss(x.detach(), y[:7], scale).isnan()


def test_label_smoothing_sees_the_weight_of_the_hard_negative():
    z0, z1, hard = (F.normalize(t.double(), dim=1) for t in (A, B, torch.randn(16, 8)))
    s = z0 @ torch.cat([z1, hard]).T / 0.5 + 0.7 * F.pad(torch.eye(16, dtype=torch.float64), (16, 0))
    want = F.cross_entropy(s, torch.arange(16), label_smoothing=0.3)
    options = {"temperature": 0.5, "hard_negative_weight": 0.7, "label_smoothing": 0.3}
    torch.testing.assert_close(info_nce(z0, z1, hard_negative_keys=hard, **options), want)
    got, stats = info_nce(z0, z1, hard_negative_keys=hard, return_stats=True, **options)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(stats.loss.mean(), want)


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e-13, 1e-9])
def test_cosine_distances_of_rows_too_small_for_unit_length(size):
    """A norm below 1e-12 counts as 1e-12, as in ``F.normalize``; the square of a denormal is 0 in float32."""
    a, p, n = A.clone(), size * B, B.flip(0)
    a[3] *= size
    rows = [t.requires_grad_() for t in (a, p, n)]
    wide = [t.detach().double().requires_grad_() for t in rows]
    unit = [F.normalize(t, dim=1) for t in wide]
    want = F.softplus((unit[0] * unit[2]).sum(1) - (unit[0] * unit[1]).sum(1)).mean()
    got = triplet(*rows, distance="cosine", soft=True)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    if size > 1e-30:  # below it not even the gradient of float64 fits into a float32
        for ours, true in zip(torch.autograd.grad(got, rows), torch.autograd.grad(want, wide), strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-6 * true.abs().max().item())


@pytest.mark.parametrize("normalize", [False, True])
def test_samples_without_a_label_are_no_anchors_and_no_positives(normalize):
    labels = torch.tensor([0, -1, 1, -1, 0, 1, 2, -1, 0, 1, 1, 2, 3, -1, 3, 0])
    features = torch.stack([A, B, A - B], 1).requires_grad_()
    rows = sup_con(features, labels, normalize=normalize, temperature=0.5, reduction="none", ignore_label=-1)
    z = (F.normalize(features.detach().double(), dim=2) if normalize else features.detach().double()).transpose(0, 1).flatten(0, 1)
    label = labels.repeat(3)
    s = (z @ z.T / 0.5).masked_fill(torch.eye(48, dtype=torch.bool), -math.inf)
    positive = (label[:, None] == label) & (label[:, None] >= 0) & ~torch.eye(48, dtype=torch.bool)
    mean = torch.where(positive, s, 0.0).sum(1) / positive.sum(1).clamp_min(1)
    want = torch.where(label >= 0, s.logsumexp(1) - mean, 0.0)
    torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=1e-5)
    loss_of = partial(sup_con, features, labels, normalize=normalize, temperature=0.5, ignore_label=-1)
    torch.testing.assert_close(loss_of(), rows.sum() / 36)
    torch.testing.assert_close(loss_of(reduction="sum"), rows.sum())
    module = loss.SupConLoss(0.5, base_temperature=None, normalize=normalize, ignore_label=-1)
    torch.testing.assert_close(module(features, labels), loss_of())
    torch.testing.assert_close(module(features), sup_con(features, normalize=normalize, temperature=0.5))
    nothing = sup_con(features, torch.full((16,), -1), normalize=normalize, ignore_label=-1)
    assert nothing == 0 and not torch.autograd.grad(nothing, features)[0].any()
    bytes_ = torch.where(labels < 0, 255, labels).to(torch.uint8)
    torch.testing.assert_close(sup_con(features, bytes_, normalize=normalize, temperature=0.5, ignore_label=255), loss_of())


def test_the_smallest_temperatures_are_finite_or_refused():
    for t in (1e-37, -1e-37, torch.tensor(1e-37)):
        assert not nt_xent(A, B, t).isnan()  # infinite at -1e-37, as the loss in float32 is
    for t in (1e-40, torch.tensor(1e-40), torch.tensor([1e-320], dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"nt_xent: temperature must be at least 1\.18e-38 in size"):
            nt_xent(A, B, t)
    assert nt_xent(A.double(), A.double(), 1e-40).isfinite()
    with pytest.raises(ValueError, match=r"clip_loss: logit_scale must be finite in torch\.float32, got 1e\+300"):
        clip_loss(A, B, 1e300)


# --- what surrounds a loss -------------------------------------------------------------------------------------------


def test_a_compiled_loss_of_local_rows_says_so_once(monkeypatch):
    """In processes of a group: tests/distributed/test_gather.py."""
    monkeypatch.setattr(local_rows, "world_size", lambda: 2)
    monkeypatch.setattr(local_rows, "_WARNED", set())
    compiled = torch.compile(nt_xent, backend="aot_eager", fullgraph=True)
    with pytest.warns(fastssl.LocalRowsWarning, match="nt_xent: 2 processes train together") as said:
        compiled(A, B)
        compiled(A[:7], B[:7])
        nt_xent(A, B)
    assert len(said) == 1 and said[0].filename != local_rows.__file__


def test_inference_tensors_are_constants_like_any():
    with torch.inference_mode():
        b, ids, scale, index = B.clone(), LABELS.clone(), torch.tensor(10.0), torch.zeros(16, 2, dtype=torch.int64)
    calls = {
        "clip": lambda a, b, ids, scale, index: clip_loss(a, b, scale, ids=ids),
        "siglip": lambda a, b, ids, scale, index: siglip_loss(a, b, scale, -scale, image_id=ids),
        "info_nce": lambda a, b, ids, scale, index: info_nce(a, b, ids=ids, temperature=scale),
        "info_nce paired": lambda a, b, ids, scale, index: info_nce(a, b, b[:, None], negative_mode="paired"),
        "moco": lambda a, b, ids, scale, index: moco_loss(a, b, b.t(), scale),
        "sup_con": lambda a, b, ids, scale, index: sup_con(a[:, None], ids, temperature=scale),
        "sup_con mask": lambda a, b, ids, scale, index: sup_con(a[:, None], mask=b.abs()[:, :1] + b.abs()[:, 1]),
        "nce": lambda a, b, ids, scale, index: nce(a, b, b, scale, n=9, noise_index=index),
        "triplet": lambda a, b, ids, scale, index: triplet(a, b, b) + triplet_batch(a, ids),
        "similarity_lse": lambda a, b, ids, scale, index: similarity_lse(a, b, scale=scale, x_id=ids, y_id=ids, y_bias=b[:, 0]),
    }
    for name, call in calls.items():
        a, same = A.clone().requires_grad_(), A.clone().requires_grad_()
        call(a, b, ids, scale, index).sum().backward()
        call(same, *(t.clone() for t in (b, ids, scale, index))).sum().backward()
        assert torch.equal(a.grad, same.grad), name


def test_flops_are_counted():
    """In sweeps over 16 x 16 similarities. Both views of NT-Xent make 32 x 32, of which the triangle is computed."""
    importlib.import_module("torch.utils.flop_counter")
    calls = {
        "nt_xent": (8, lambda a: nt_xent(a, B)),
        "info_nce": (4, lambda a: info_nce(a, a + B)),
        "info_nce of constant keys": (2, lambda a: info_nce(a, B)),
        "moco": (2, lambda a: moco_loss(a, B, B.t())),
        "moco_v3": (2, lambda a: moco_v3_loss(a, B)),
        "clip": (3, lambda a: clip_loss(a, a + B, 1.0)),
        "siglip": (3, lambda a: siglip_loss(a, a + B, 1.0, 0.0)),
        "siglip of constant texts": (2, lambda a: siglip_loss(a, B, 1.0, 0.0)),
        "similarity_lse": (2, lambda a: similarity_lse(a, a).sum()),
        "without gradient": (2, lambda a: nt_xent(a.detach(), B)),
    }
    for name, (sweeps, call) in calls.items():
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            loss = call(A.clone().requires_grad_())
            if loss.requires_grad:
                loss.backward()
        assert counter.get_total_flops() == sweeps * 2 * 16 * 16 * 8, name


def test_numbers_may_be_numpys():
    for number in (numpy.float32(0.5), numpy.float64(0.5), numpy.float16(0.5)):
        assert torch.equal(nt_xent(A, B, number), nt_xent(A, B, 0.5))
    torch.testing.assert_close(clip_loss(A, B, numpy.int64(10)), clip_loss(A, B, 10.0))
    average = torch.zeros(2)
    functional.ema_update_([average], [torch.ones(2)], numpy.float32(0.5))
    assert torch.equal(average, torch.full((2,), 0.5))


def test_flop_formulas_are_registered_by_whoever_imports_the_counter():
    code = """
import sys, torch, fastssl
assert "torch.utils.flop_counter" not in sys.modules and "triton" not in sys.modules
from torch.utils.flop_counter import flop_registry
assert torch.ops.fastssl.similarity_fwd in flop_registry and torch.ops.fastssl.sigmoid_pair in flop_registry
"""
    subprocess.run([sys.executable, "-c", code], check=True)
