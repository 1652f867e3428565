"""The benchmarks of masked image modelling: every implementation makes the same results, what is wrong gets no time."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from benchmarks import peers
from benchmarks.core import memory, runner
from benchmarks.core.latents import LATENTS
from benchmarks.core.masking import MASKING
from benchmarks.core.registry import WORKLOADS, Target, parse_shape
from benchmarks.peers.mae_repository import FORMS
from fastssl.testing.masked_updates import EAGER, LEAVES, OURS, forward_backward, sequence
from fastssl.testing.updates import copied

WORKED = [(workload, dtype) for workload in MASKING.values() for dtype in workload.dtypes]
#: Libraries that make the same results, beside eager, the MAE repository's form and torch.compile.
LIBRARIES = {
    "mask_ids": set(),
    "random_masking": {"lightly", "transformers"},
    "embed_visible": {"lightly"},
    **{name: {"lightly", "transformers"} for name in ("restore_tokens", "patch_loss", "patch_loss_norm", "mae_bundle")},
}
FAST = runner.Options(peers=tuple(n for n in peers.NAMES if n != "compile"), rounds=3, budget_s=0.05, memory=False)
QUIET = lambda text: None  # noqa: E731
needs_proc = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
each_work = pytest.mark.parametrize("workload", MASKING.values(), ids=lambda w: w.name)


@pytest.mark.parametrize(("workload", "dtype"), WORKED, ids=lambda v: getattr(v, "name", str(v)[6:]))
def test_every_implementation_makes_the_same_results(workload, dtype):
    """Ours by the strict rule; a library that is not installed is named with a reason."""
    case = runner.run_case(workload, workload.quick[0], replace(FAST, dtype=dtype), QUIET)
    entries = {entry["implementation"]: entry for entry in case["entries"]}
    assert case["dtype"] == str(dtype)[6:]
    assert {name: e["reason"] for name, e in entries.items() if e["status"] in ("wrong", "failed")} == {}
    timed = {"fastssl", "eager", "mae_repository"} | {n for n in LIBRARIES[workload.name] if not peers.load(n).absent()}
    assert {name for name, e in entries.items() if e["status"] == "ok"} == timed
    assert all(entries[name]["ms"] > 0 for name in timed)


@each_work
def test_forms_of_the_mae_repository_compile_in_one_graph(workload, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    entry, step = runner.admit(runner.prepare(workload, workload.quick[0], FAST), "compile")
    assert entry["status"] == "ok" and step is not None, entry


# --- what is wrong ---------------------------------------------------------------------------------------------------------


def _swapped(ids):
    """The first two ids of the last sample change places."""
    ids = ids.clone()
    ids[-1, :2] = ids[-1, :2].flip(0)
    return ids


def _neighbours_swapped(ids):
    """Ids 100 and 101 of the first sample change places."""
    first = ids[:1]
    return torch.cat([torch.where(first == 100, 101, torch.where(first == 101, 100, first)), ids[1:]])


def _changed(name, **changes):
    """The eager form whose results of these names are changed."""

    def form(given):
        found = EAGER[name](given)
        return found | {key: change(found[key]) for key, change in changes.items()}

    return form


def _other_input(name, **changes):
    """The eager form on changed inputs."""
    return lambda given: EAGER[name](given | {key: change(given[key]) for key, change in changes.items()})


def _detached_loss(given):
    loss = EAGER["patch_loss"](given)["loss"]
    return {"loss": 1.01 * loss - 0.01 * loss.detach()}


WRONG = {
    "one pair of ids": ("mask_ids", _changed("mask_ids", ids_restore=_swapped)),
    "order of kept ids": ("mask_ids", _changed("mask_ids", ids_keep=_swapped)),
    "mask of one patch": ("mask_ids", _changed("mask_ids", mask=lambda m: m.index_fill(1, torch.tensor([3]), 1.0))),
    "order of kept tokens": ("random_masking", _changed("random_masking", kept=lambda x: x.roll(1, 1))),
    "tokens of another patch": ("embed_visible", _other_input("embed_visible", ids_keep=lambda ids: (ids + 1) % 16)),
    "no class token": ("embed_visible", _other_input("embed_visible", cls=torch.zeros_like)),
    "no positions": ("restore_tokens", _other_input("restore_tokens", decoder_pos=torch.zeros_like)),
    "tokens one place on": ("restore_tokens", _other_input("restore_tokens", ids_restore=lambda ids: ids.roll(1, 1))),
    "mask token without gradient": ("restore_tokens", _other_input("restore_tokens", mask_token=torch.Tensor.detach)),
    "loss off by 1 %": ("patch_loss", _changed("patch_loss", loss=lambda loss: 1.01 * loss)),
    "gradient off by 1 %": ("patch_loss", _detached_loss),
    "not normalised": ("patch_loss_norm", _other_input("patch_loss_norm", norm_pix_loss=lambda _: False)),
    "loss of all patches": ("patch_loss_norm", _other_input("patch_loss_norm", mask=torch.ones_like)),
    "part left out": ("mae_bundle", sequence(EAGER["mask_ids"], EAGER["embed_visible"], EAGER["patch_loss"])),
    "mask of other noise": ("mae_bundle", _other_input("mae_bundle", noise=lambda noise: noise.flip(1))),
}


@pytest.mark.parametrize("what", WRONG)
def test_gate_refuses_what_is_wrong_and_prints_no_time(what):
    name, form = WRONG[what]
    workload = WORKLOADS[name]

    def build(implementation, workload):
        right = peers.implementation("fastssl", workload)
        return right if implementation == "fastssl" else partial(forward_backward, form, LEAVES[name], **workload.constants)

    ours, wrong = runner.run_case(workload, workload.quick[0], replace(FAST, peers=("eager",)), QUIET, build=build)["entries"]
    assert ours["status"] == "ok" and ours["ms"] > 0
    assert wrong["status"] == "wrong", wrong
    assert not {"ms", "bytes_per_s", "flop_per_s", "share_of_limit", "times_ours"} & wrong.keys()


def test_one_pair_of_ids_among_many_is_seen():
    """The error in norm of two neighbours is 1e-4, which a float would be allowed."""
    workload = WORKLOADS["mask_ids"]
    form = _changed("mask_ids", ids_restore=_neighbours_swapped)
    prepared = runner.prepare(workload, (64, 196), FAST)
    errors, wrong, _ = prepared.try_out(partial(forward_backward, form, (), **workload.constants), strict=False)
    assert errors["update_error"] == float("inf") and wrong.startswith("ids_restore")


def test_our_own_steps_are_held_to_the_strict_rule():
    workload = WORKLOADS["patch_loss"]
    prepared = runner.prepare(workload, workload.quick[0], FAST)
    form = _changed("patch_loss", loss=lambda loss: (1 + 1e-4) * loss)
    verdicts = [
        prepared.try_out(partial(forward_backward, form, LEAVES["patch_loss"], norm_pix_loss=False), strict=strict)[1]
        for strict in (False, True)
    ]
    assert verdicts[0] == "" and "is 1.0e-04 of its change" in verdicts[1]


# --- states, steps, amounts --------------------------------------------------------------------------------------------------


@each_work
def test_a_step_leaves_its_inputs_and_repeats_itself(workload):
    state = workload.case.state(workload.quick[0])
    assert set(state) == set(workload.case.shared)
    before = copied(state)
    step = workload.case.ours(state, **workload.constants)
    step()
    first = {name: state[name].clone() for name in workload.case.written}
    step()
    assert all(torch.equal(state[name], first[name]) for name in first), "gradients do not add up"
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_ids_of_a_state_agree():
    state = WORKLOADS["embed_visible"].case.state((5, 16, 4, 8)) | WORKLOADS["patch_loss"].case.state((5, 16, 4))
    kept, removed = state["ids_keep"], state["idx_mask"] - 1
    assert torch.equal(state["idx_keep"][:, 1:] - 1, kept) and not state["idx_keep"][:, 0].any()
    assert torch.equal(torch.cat([kept, removed], 1).sort(1).values, torch.arange(16).expand(5, -1))
    assert torch.equal(state["mask"].sum(1), torch.full((5,), 12.0)) and not state["mask"].gather(1, kept).any()
    noise = WORKLOADS["mask_ids"].case.state((64, 196))["noise"].sort(1).values
    assert noise.dtype == torch.float32 and (noise.diff(dim=1) > 0).all() and noise.min() > 0 and noise.max() < 1


def test_states_of_the_measured_shapes():
    with FakeTensorMode():
        bundle = WORKLOADS["mae_bundle"].case.state(WORKLOADS["mae_bundle"].shapes[0], dtype=torch.bfloat16)
        tokens = WORKLOADS["random_masking"].case.state(WORKLOADS["random_masking"].shapes[0])
    shapes = {
        "noise": (64, 196),
        "images": (64, 3, 224, 224),
        "weight": (768, 3, 16, 16),
        "bias": (768,),
        "pos": (1, 197, 768),
        "cls": (1, 1, 768),
        "x": (64, 50, 512),
        "mask_token": (1, 1, 512),
        "decoder_pos": (1, 197, 512),
        "pred": (64, 196, 768),
        "g_embedded": (64, 50, 768),
        "g_restored": (64, 197, 512),
    }
    assert {name: tuple(t.shape) for name, t in bundle.items()} == shapes
    assert {t.dtype for name, t in bundle.items() if name != "noise"} == {torch.bfloat16}
    assert {name: tuple(t.shape) for name, t in tokens.items()} == {
        "noise": (64, 196),
        "x": (64, 196, 768),
        "g_kept": (64, 49, 768),
    }


def test_bytes_flops_and_predictions_by_hand():
    n, length, removed, width = 64, 196, 147, 768
    moved = {name: workload.case.bytes(workload.shapes[0], 4) for name, workload in MASKING.items()}
    assert moved["mask_ids"] == 24 * 256 * length
    assert moved["random_masking"] == 4 * n * (3 * 49 + length) * width + 24 * n * length
    assert moved["embed_visible"] == 4 * 2 * (n * 49 * 768 + n * 50 * width + 768 * width)
    assert moved["restore_tokens"] == 4 * n * ((2 + 49 + length) + (1 + length) + 50) * 512
    assert moved["patch_loss"] == moved["patch_loss_norm"] == 4 * n * (2 * removed + 2 * removed + length) * 768
    parts = sum(moved[name] for name in ("embed_visible", "restore_tokens", "patch_loss"))
    assert moved["mae_bundle"] == parts + 24 * n * length
    for name in ("embed_visible", "mae_bundle"):
        workload = WORKLOADS[name]
        assert workload.product(workload.shapes[0]) == (n * 50, width, 768)
        assert workload.case.flops(workload.shapes[0]) == 2 * workload.sweep_flops(workload.shapes[0]) == 4 * n * 50 * width * 768
    large = WORKLOADS["mae_bundle"].gpu_targets[0]
    assert WORKLOADS["mae_bundle"].predicted_ms(large.shape) < large.value, "the target is above the time that memory needs"


def test_targets_in_memory_are_judged():
    target = Target((4,), "times_less_memory", 3, "mae_repository")
    assert str(target) == ">= 3x less memory above the inputs than mae_repository"
    entries = {"fastssl": {"status": "ok", "ms": 1.0, "peak_mb": 10.0}, "mae_repository": {"status": "ok", "ms": 1.0}}
    assert runner.judge(target, entries, None) == {"target": str(target), "got": "not measured", "met": None}
    for peak, met in ((30.0, True), (29.0, False)):
        entries["mae_repository"]["peak_mb"] = peak
        assert runner.judge(target, entries, None) == {"target": str(target), "got": f"{peak / 10:g}", "met": met}
    (found,) = [t for t in WORKLOADS["mae_bundle"].targets if t.kind == "times_less_memory"]
    assert (found.value, found.peer) == (3, "mae_repository")


@needs_proc
def test_memory_of_a_step_counts_what_it_makes_again():
    """In a fresh process: kept tokens and the gradient of x, 6.1 MB, although the step before left such in the state."""
    name = "mae_repository" if peers.load("transformers").absent() else "transformers"
    peak, reason = memory.measure(WORKLOADS["random_masking"], (16, 256, 300), torch.float32, name)
    assert reason == "" and peak > 6


def test_shapes_are_read():
    assert parse_shape("64x224x16x768x512", WORKLOADS["mae_bundle"]) == (64, 224, 16, 768, 512)
    assert parse_shape("256x196", WORKLOADS["mask_ids"]) == (256, 196)
    with pytest.raises(ValueError, match="N x S x p x E x D"):
        parse_shape("64x224x16", WORKLOADS["mae_bundle"])


def test_all_forms_have_the_same_works():
    assert set(MASKING) == set(OURS) == set(EAGER) == set(FORMS) == set(LIBRARIES)
    assert set(LEAVES) == set(MASKING) | set(LATENTS) - {"word_pairs"}  # whose gradients are sparse
