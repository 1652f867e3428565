"""The benchmarks of the updates: their accuracy check, peers, bytes, memory, results; rehearsals at tiny sizes."""

import os
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import peers
from benchmarks.core import machine, memory, rates, runner, timing
from benchmarks.core.prepared import prepare
from benchmarks.core.registry import WORKLOADS, Target, parse_shape
from benchmarks.report import plots
from benchmarks.report import tables as report
from fastssl import bench
from fastssl.__main__ import main
from fastssl.testing.updates import MODELS, as_module, copied, elements

EMA, QUEUE, MOCO = WORKLOADS["ema"], WORKLOADS["queue_push"], WORKLOADS["moco_step"]
UPDATES = [workload for workload in WORKLOADS.values() if workload.kind == "update"]
FAST = runner.Options(peers=("eager",), rounds=3, budget_s=0.1, memory=False)
QUIET = lambda text: None  # noqa: E731
needs_proc = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")


@pytest.mark.parametrize(
    ("model", "name"), [("resnet50",) * 2, ("vit_b16", "vit_base_patch16_224"), ("vit_l16", "vit_large_patch16_224")]
)
def test_models_have_the_parameters_of_timms(model, name):
    if reason := peers.load("timm").absent():
        pytest.skip(reason)
    peers.ready_torchvision()
    from timm import create_model

    with torch.device("meta"):
        expected = [(n, tuple(p.shape)) for n, p in create_model(name).named_parameters()]
    assert list(MODELS[model].items()) == expected


def test_module_of_tensors_shares_their_memory():
    tensors = EMA.case.state(("tiny",))["ema"]
    module = as_module("tiny", tensors)
    assert [n for n, _ in module.named_parameters()] == list(MODELS["tiny"])
    assert [p.data_ptr() for p in module.parameters()] == [t.data_ptr() for t in tensors]


@pytest.mark.parametrize("workload", UPDATES, ids=lambda w: w.name)
def test_installed_peers_make_the_same_update(workload):
    """Ours too, by the strict rule."""
    prepared = runner.prepare(workload, workload.quick[0], FAST)
    tried = {name: runner.admit(prepared, name)[0] for name in (runner.OURS, *peers.NAMES) if name != "compile"}
    assert {name: entry["reason"] for name, entry in tried.items() if entry["status"] in ("wrong", "failed")} == {}
    assert tried["fastssl"]["status"] == tried["eager"]["status"] == "ok"


def test_moco_step_in_half_precision():
    prepared = runner.prepare(MOCO, (64, 640, 32), replace(FAST, dtype=torch.bfloat16))
    for name in ("fastssl", "eager", "moco_repository"):
        assert runner.admit(prepared, name)[0]["status"] == "ok"


def _nothing(state, **constants):
    return lambda: None


def _all_but_one(state, momentum):
    names = ("ema", "params")
    return lambda: torch._foreach_lerp_(*(state[name][:-1] for name in names), 1 - momentum)


def _other_momentum(state, momentum):
    return EMA.case.eager(state, momentum=0.9985)


def _no_shadow(state, momentum):
    return lambda: torch._foreach_lerp_(state["ema"], state["params"], 1 - momentum)


def _standing_pointer(state):
    return lambda: QUEUE.case.eager(dict(state, ptr=state["ptr"].clone()))()


def _no_push(state, temperature):
    kept = dict(state, queue=state["queue"].clone(), ptr=state["ptr"].clone())
    step = MOCO.case.eager(kept, temperature)

    def both():
        step()
        state.update(loss=kept["loss"], query_grad=kept["query_grad"])

    return both


WRONG = [
    *((workload.name, _nothing) for workload in UPDATES),
    ("ema", _all_but_one),
    ("ema", _other_momentum),
    ("ema_shadow", _no_shadow),
    ("queue_push", _standing_pointer),
    ("moco_step", _no_push),
]


@pytest.mark.parametrize(("name", "bind"), WRONG, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_gate_refuses_a_wrong_update_and_prints_no_time(name, bind):
    workload = WORKLOADS[name]

    def build(implementation, workload):
        right = peers.implementation("fastssl", workload)
        return right if implementation == "fastssl" else lambda state: bind(state, **workload.constants)

    case = runner.run_case(workload, workload.quick[0], FAST, QUIET, build=build)
    ours, wrong = case["entries"]
    assert ours["status"] == "ok" and ours["ms"] > 0
    assert wrong["status"] == "wrong" and "of its change from float64" in wrong["reason"]
    assert not {"ms", "bytes_per_s", "flop_per_s", "share_of_limit", "times_ours"} & wrong.keys()


def test_our_own_updates_are_held_to_the_strict_rule():
    prepared = runner.prepare(EMA, ("tiny",), FAST)

    def rounded(state):
        def step():
            torch._foreach_lerp_(state["ema"], state["params"], 0.001 * (1 + 2e-4))

        return step

    assert prepared.try_out(rounded, strict=False)[1] == ""
    assert prepared.try_out(rounded, strict=True)[1].startswith("ema is")


def test_states_are_kept_apart():
    state = EMA.case.state(("tiny",))
    own = EMA.own(state)
    assert own["params"] is state["params"] and own["ema"][0].data_ptr() != state["ema"][0].data_ptr()
    wide = copied(WORKLOADS["ema_shadow"].case.state(("tiny",)) | {"ptr": torch.zeros(1, dtype=torch.int64)}, dtype=torch.float64)
    assert {t.dtype for name in ("ema", "shadow") for t in wide[name]} == {torch.float64} and wide["ptr"].dtype == torch.int64


def test_bytes_and_predictions_by_hand():
    assert elements("resnet50") == 25_557_032 and elements("vit_b16") == 86_567_656
    moved = {"ema": 12, "ema_shadow": 14, "lars": 28, "larc": 28, "adamw": 28, "adamw_ema": 36}
    for name, each in moved.items():
        assert WORKLOADS[name].case.bytes(("resnet50",), 4) == each * elements("resnet50")
    assert 1e3 * EMA.predicted_ms(("vit_l16",)) == pytest.approx(849, abs=1)
    assert 1e3 * EMA.predicted_ms(("resnet50",)) == pytest.approx(71, abs=1)
    assert 1e3 * WORKLOADS["lars"].predicted_ms(("resnet50",)) == pytest.approx(166, abs=1)
    assert 1e3 * EMA.predicted_ms(("vit_l16",), rates.H100) == pytest.approx(1217, abs=1), "its memory is slower"
    assert 1e3 * MOCO.predicted_ms((256, 65536, 128)) == pytest.approx(10.9, abs=0.1)
    assert QUEUE.case.bytes((256, 65536, 128), 4) == 2 * 256 * 128 * 4
    assert timing.memory_call(1 << 20)[1] == 0.5, "a pass over as many bytes moves twice as many"
    assert timing.memory_call(float(1 << 31))[1] == 4


def test_updates_are_measured_in_their_own_dtypes():
    assert EMA.dtype(torch.bfloat16) == torch.float32 and MOCO.dtype(torch.bfloat16) == torch.bfloat16
    case = runner.run_case(EMA, ("tiny",), replace(FAST, dtype=torch.bfloat16, peers=()), QUIET)
    assert case["dtype"] == "float32"
    case = runner.run_case(QUEUE, (8, 40, 16), replace(FAST, dtype=torch.float16, peers=()), QUIET)
    assert case["dtype"] == "float16"


@needs_proc
def test_memory_of_a_step_is_what_it_makes_beside_its_state():
    form, reason = memory.measure(EMA, ("resnet50",), torch.float32, "moco_repository")
    assert reason == "" and form > 8, "the largest tensor of a ResNet-50 has 9.4 MB"
    assert memory.measure(EMA, ("resnet50",), torch.float32, "eager")[0] < 4


def test_host_time_launches_and_graphs_of_a_gpu_are_noted(monkeypatch):
    """With stand-ins for the device: what a real one returns ends in the entries and in the table."""
    prepared = runner.prepare(EMA, ("tiny",), FAST)
    entries, steps = {}, {}
    for name in ("eager", "moco_repository"):
        entries[name], steps[name] = runner.admit(prepared, name)
    assert [prepared.moves_memory(steps[name]) for name in steps] == [False, True]
    monkeypatch.setattr(timing, "gpu_launches", lambda step: (3, "") if step is steps["eager"] else (None, "no profiler"))
    monkeypatch.setattr(timing, "capture_graph", lambda step: (step, ""))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    runner._launches(entries, steps)
    runner._graph_times(entries, steps, prepared, FAST)
    eager, form = entries.values()
    assert eager["launches"] == 3 and eager["host_ms"] > 0 and eager["graph_ms"] > 0
    assert form["launches_reason"] == "no profiler" and "new memory" in form["graph_reason"] and "graph_ms" not in form
    note = report._note(eager)
    assert note.startswith("3 launches, host") or note.startswith("3 launches; host")
    assert "CUDA graph" in note and "no CUDA graph" in report._note(form)


def test_keys_go_round_the_end_of_the_queue():
    state = QUEUE.case.state((8, 40, 16))
    before = state["queue"].clone()
    QUEUE.run(QUEUE.case.eager, state)
    assert state["ptr"].item() == 8 and torch.equal(state["queue"][:, 8:32], before[:, 8:32])
    for columns in (slice(0, 8), slice(32, 40)):
        assert torch.equal(state["queue"][:, columns], state["keys"].T)


def test_targets_of_updates_are_judged():
    entries = {"fastssl": {"status": "ok", "ms": 10.0, "launches": 2}, "eager": {"status": "ok", "ms": 9.8, "times_ours": 0.98}}
    as_fast, one = Target(("tiny",), "not_slower", 0.97, "eager"), Target(("tiny",), "launches", 1)
    assert runner.judge(as_fast, entries, 5.0) == {"target": str(as_fast), "got": "0.98", "met": True}
    assert runner.judge(one, entries, 5.0)["met"] is False and runner.judge(one, {"fastssl": {"status": "ok"}}, 5.0)["met"] is None


def test_times_are_judged_on_the_replay_of_a_graph_where_there_is_one():
    """A short step waits for the host in a plain call: 0.31 ms where the device needs 0.2."""
    within, at_limit = Target(("tiny",), "ms", 0.26), Target(("tiny",), "times_limit", 1.1)
    plain = {"status": "ok", "ms": 0.31, "share_of_limit": 0.2 / 0.31}
    for target, call, replay in ((within, "0.31", "0.2"), (at_limit, "1.55", "1")):
        assert runner.judge(target, {"fastssl": plain}, 0.2) == {"target": str(target), "got": call, "met": False}
        found = runner.judge(target, {"fastssl": plain | {"graph_ms": 0.2}}, 0.2)
        assert found == {"target": str(target), "got": f"{replay}, CUDA graph", "met": True}
        assert runner.judge(target, {"fastssl": {"status": "wrong"}}, 0.2)["met"] is None
    peer = {"eager": {"status": "ok", "ms": 0.62, "graph_ms": 0.2, "times_ours": 2.0}}
    found = runner.judge(Target(("tiny",), "times_faster", 2, "eager"), {"fastssl": plain | {"graph_ms": 0.2}} | peer, 0.2)
    assert found["got"] == "2", "against a peer both are plain calls, as people run them"


def test_an_h100_and_an_h200_are_told_apart(tmp_path, monkeypatch):
    names = {"NVIDIA H100 80GB HBM3": rates.H100, "NVIDIA H200": rates.H200}
    assert names == rates.KNOWN and rates.H100.bytes_per_s < 0.8 * rates.H200.bytes_per_s
    monkeypatch.setattr(rates, "measured", lambda name: rates.Rates(name, 1e14, 1e12, 1e14, 1e12))
    for other in ("NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA L4"):
        assert rates.of_device(other).name == other, "not taken for its relative"
    prepared = prepare(EMA, ("tiny",), FAST)
    times = []
    for name, known in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        object.__setattr__(prepared, "device", "cuda")
        case = runner._case_json(
            prepared, {"date": "2026-11-28", "commit": "abc", "load": 0.0}, {}, {"limit_ms": 1.0, "limit_is": "a copy"}
        )
        assert case["predicted_for"] == known.name and case["predicted_ms"] == EMA.predicted_ms(("tiny",), known)
        assert f"Predicted for an {known.name}: " in report.case_table({"title": "EMA", "axes": "model"}, case)
        times.append(case["predicted_ms"])
        found = {"schema": runner.SCHEMA, "work": "ema", "machine": {"slug": machine.slug("cuda")}, "cases": [case]}
        runner.save(found, tmp_path / machine.slug("cuda"))
    assert times[0] / times[1] == pytest.approx(4.3 / 3.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nvidia-h100-80gb-hbm3", "nvidia-h200"]
    with pytest.raises(ValueError, match="measured on nvidia-h100-80gb-hbm3, this is nvidia-h200"):
        runner.save(found, tmp_path / "nvidia-h100-80gb-hbm3")


def test_results_become_tables_and_a_picture(tmp_path):
    options = replace(FAST, peers=("eager", "loop", "memeff"))
    case = runner.run_case(EMA, ("tiny",), options, QUIET)
    assert [e["implementation"] for e in case["entries"]] == ["fastssl", "eager", "loop"], (
        "a library without an average is not named"
    )
    path = runner.save(runner.result(EMA, "cpu", [case]), tmp_path / "cpu-test")
    found = runner.read(path)
    text = report.workload_report(found)
    assert "tiny (model), float32" in text and "| GB/s | of the limit | update error |" in text
    assert "| model | dtype | fastssl | of the limit | eager | a loop, as DINO's |" in report.peer_table(found)
    pytest.importorskip("matplotlib")
    (picture,) = plots.draw(found, tmp_path / "pictures")
    assert picture.name == "ema.png" and picture.stat().st_size > 10_000


def test_command_line_of_updates(tmp_path, capsys):
    out = ["--quick", "--peers", "none", "--no-memory", "--budget", "0.05", "--device", "cpu", "--out", str(tmp_path)]
    assert bench.main(["ema", "queue_push", *out]) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"ema.json", "queue_push.json"}
    assert main(["bench", "ema", "--shapes", "resnet51"]) == 2 and "must be one of tiny, resnet50" in capsys.readouterr().err
    assert parse_shape("vit_l16", EMA) == ("vit_l16",) and parse_shape("8x40x16", QUEUE) == (8, 40, 16)


def test_without_matplotlib_results_come_without_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    options = ["--quick", "--no-memory", "--budget", "0.01", "--rounds", "1", "--peers", "eager", "--out", str(tmp_path)]
    assert bench.main(["ema", "queue_push", *options]) == 0
    assert "pictures left out" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema.json", "queue_push.json"]
