"""What real users hand to the losses: mixed dtypes under autocast, schedules in compiled graphs, temperatures of any shape, NaN."""

import older_losses
import pytest
import torch
from torch._dynamo.utils import counters

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
from fastssl.testing.cases import CASES, two_views

A, B = two_views((16, 8)).values()
LABELS = torch.arange(16) % 5


# --- autocast --------------------------------------------------------------------------------------------------------


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
    """Each side in turn is narrow: the loss is that of the widened side, each gradient has its own input's dtype."""
    for name in _sides(inputs):
        mixed = {key: (t.to(narrow) if key == name else t).requires_grad_() for key, t in inputs.items()}
        wide = {key: t.detach().to(inputs[key].dtype).requires_grad_() for key, t in mixed.items()}
        with torch.autocast("cpu", torch.bfloat16):
            got = call(**mixed)
            with pytest.raises(TypeError, match="must have the same dtype"), torch.autocast("cpu", enabled=False):
                call(**mixed)
        want = call(**wide)
        assert torch.equal(got, want)
        grads, want_grads = (torch.autograd.grad(t.sum(), list(leaves.values())) for t, leaves in ((got, mixed), (want, wide)))
        assert all(
            torch.equal(g, w.to(g.dtype)) and g.dtype == t.dtype for g, w, t in zip(grads, want_grads, mixed.values(), strict=True)
        )


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
    """As many as eager PyTorch, whose first graph also holds the number as a constant."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(SCHEDULED[name], backend="aot_eager", fullgraph=True)
    for t in (0.5, 0.45, 0.4):
        (got, grad), (want, want_grad) = (_value_and_grad(call, t) for call in (compiled, SCHEDULED[name]))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(grad, want_grad)
    assert counters["stats"]["unique_graphs"] <= 2


def _value_and_grad(call, t):
    a = A.clone().requires_grad_()
    out = call(a, B, t)
    return out.detach(), torch.autograd.grad(out, a)[0]


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
