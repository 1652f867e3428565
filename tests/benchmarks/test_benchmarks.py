"""The benchmark machinery: what may be printed as a speed, what memory measures, and that results become tables."""

import json
import os
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import peers
from benchmarks.core import accuracy, machine, memory, predicted, registry, runner, runs, timing
from benchmarks.core.rates import H200
from benchmarks.core.registry import WORKLOADS, Target, parse_shape
from benchmarks.core.workloads import Plan
from benchmarks.peers import Peer
from benchmarks.report import plots
from benchmarks.report import tables as report
from fastssl import bench, peaks
from fastssl.__main__ import main
from fastssl.testing.compare import relative_error

NT_XENT = WORKLOADS["nt_xent"]
PAIRS = [
    (w, n) for w in WORKLOADS.values() if w.kind == "loss" for n in peers.NAMES if n != "compile" and peers.load(n).concerns(w)
]
SHAPE = (24, 16)
FAST = runner.Options(peers=("eager",), rounds=3, budget_s=0.2, memory=False)
needs_proc = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
QUIET = lambda text: None  # noqa: E731


class _WrongGradient(torch.autograd.Function):
    """Identity whose gradient is 1 % too long."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return 1.01 * g


def _broken(name, workload):
    call = peers.implementation("fastssl", workload)
    return lambda z0, z1: call(_WrongGradient.apply(z0), z1) if name == "eager" else call(z0, z1)


def test_gate_refuses_a_wrong_gradient_and_prints_no_time():
    case = runner.run_case(NT_XENT, SHAPE, FAST, QUIET, build=_broken)
    ours, wrong = case["entries"]
    assert ours["status"] == "ok" and ours["ms"] > 0
    assert wrong["status"] == "wrong" and "grad" in wrong["reason"]
    assert not {"ms", "flop_per_s", "share_of_limit", "times_ours", "peak_mb"} & wrong.keys()
    assert report.entry_row(wrong)[1:6] == ("",) * 5


def test_gate_holds_our_own_code_to_the_strict_rule():
    error = accuracy.Errors(loss=1e-7, grad=1e-4)
    assert accuracy.verdict(error, torch.float32) == ""
    assert "grad" in accuracy.verdict(error, torch.float32, eager=accuracy.Errors(1e-7, 1e-7))
    assert accuracy.verdict(accuracy.Errors(float("nan"), 0.0), torch.float32)


def test_gate_refuses_missing_gradients_and_failures():
    prepared = runner.prepare(NT_XENT, SHAPE, FAST)
    detached = lambda z0, z1: NT_XENT.case.eager(z0, z1.detach(), **NT_XENT.constants)  # noqa: E731
    assert accuracy.errors(detached, prepared.inputs, prepared.truth).grad == float("inf")

    def fails(name, workload):
        raise RuntimeError("no kernel\nfor this")

    entry, step = runner.admit(prepared, "eager", build=fails)
    assert step is None and entry["status"] == "failed" and entry["reason"] == "RuntimeError: no kernel"


@pytest.mark.parametrize("name", ("clip", "siglip"))
def test_blocked_truth_of_pairs_is_eager_in_float64(name, monkeypatch):
    monkeypatch.setattr(accuracy, "_BLOCK_ELEMENTS", 45 * 10)
    workload = WORKLOADS[name]
    inputs = accuracy.leaves(workload.case.inputs((45, 7)))
    exact, truth = accuracy.eager_truth(workload.case.eager, inputs), workload.truth(inputs)
    assert relative_error(truth.loss, exact.loss) < 1e-13
    assert truth.grads.keys() == exact.grads.keys()
    assert all(relative_error(truth.grads[n], exact.grads[n]) < 1e-12 for n in exact.grads)


@pytest.mark.parametrize("full_rows", (1000, 20))
def test_blocked_truth_is_eager_in_float64(full_rows):
    inputs = accuracy.leaves(NT_XENT.case.inputs((45, 7)))
    exact = accuracy.eager_truth(partial(NT_XENT.case.eager, temperature=0.1), inputs)
    truth = accuracy.pair_truth(inputs, 0.1, full_rows=full_rows, sampled=16)
    assert relative_error(truth.loss, exact.loss) < 1e-13
    for name, grad in truth.grads.items():
        rows = truth.rows[name]
        assert (rows is None) == (full_rows == 1000)
        assert relative_error(grad, exact.grads[name] if rows is None else exact.grads[name][rows]) < 1e-12


@pytest.mark.parametrize(("workload", "name"), PAIRS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_installed_peers_have_the_works_objective(workload, name):
    peer = peers.load(name)
    shape = SHAPE if len(workload.quick[0]) == 2 else (24, 40, 16)
    status, reason = peer.unfit(workload, shape, "cpu")
    if status:
        pytest.skip(f"{status}: {reason}")
    pytest.importorskip(peer.module or "torch")
    inputs = accuracy.leaves(workload.case.inputs(shape), constant=workload.constant_inputs)
    found = accuracy.errors(peer.build(workload), inputs, accuracy.truth_of(workload, shape, inputs))
    assert accuracy.verdict(found, torch.float32) == ""


def test_absent_and_unequal_peers_are_listed_with_a_reason():
    absent = Peer("nobody", {peers.EVERY_LOSS: lambda workload: None}, distribution="no-such-library", module="no_such_library")
    assert absent.unfit(NT_XENT, SHAPE, "cpu") == ("absent", "no-such-library is not installed")
    assert peers.load("memeff").unfit(NT_XENT, SHAPE, "cpu")[0] == "other objective"
    assert peers.load("inf_cl").unfit(WORKLOADS["info_nce"], SHAPE, "cpu") == ("absent", "runs on cuda only")
    pml = peers.load("pytorch_metric_learning")
    assert pml.unfit(NT_XENT, (300, 128), "cpu")[0] == "too large" and not pml.unfit(WORKLOADS["sup_con"], (300, 128), "cpu")[0]
    assert replace(absent, module=None, max_rows={"cpu": 47}).unfit(NT_XENT, SHAPE, "cpu")[0] == "too large"
    for name in peers.NAMES:
        peer = peers.load(name)
        assert peer.name == name and peer.__class__.__mro__[-2] is Peer
        for workload in WORKLOADS.values():
            assert peer.form(workload) or peer.unfit(workload, SHAPE, "cpu")[1]
    with pytest.raises(ValueError, match="unknown peer 'lightning'"):
        peers.load("lightning")


def test_torchvision_stub_works_twice():
    pytest.importorskip("lightly")
    first = peers.ready_torchvision()
    assert peers.ready_torchvision() == first and first in ("real", "stub")
    assert "torchvision" in sys.modules and hasattr(torch.ops.torchvision, "nms")


@needs_proc
def test_memory_finds_a_known_allocation():
    assert memory.rise_mb(lambda: torch.ones(48_000_000)) == pytest.approx(192, abs=8)
    assert memory.rise_mb(lambda: None) < 4


@needs_proc
def test_memory_in_a_fresh_process_counts_the_matrix_of_eager():
    eager, reason = memory.measure(NT_XENT, (1024, 32), torch.float32, "eager")
    assert reason == ""
    assert 2 * 16.8 < eager < 8 * 16.8, "eager keeps between 2 and 8 matrices of 2048 x 2048 float32"
    assert memory.measure(NT_XENT, (8, 8), torch.float32, "eager", timeout_s=0.01) == (None, "no result in 0 s")


def test_flops_bytes_and_limit_by_hand():
    shape = (4096, 128)
    u = 2 * 8192 * 8192 * 128
    assert NT_XENT.sweep_flops(shape) == u and NT_XENT.case.flops(shape) == 2 * u
    assert NT_XENT.case.bytes(shape, 4) == 2 * (2 * 4096 * 128 * 4)
    plan = Plan((("fwd plain", 1), ("bwd plain", 2)), chunks=(3, 20))
    times = [1e3 * 1e12 / min(132 * 4096 * 1.755e9 * predicted.share(kernel, 128), 790e12) for kernel in ("fwd plain", "bwd plain")]
    assert plan.ms((1000, 1000, 128), 1e12, H200) == pytest.approx(times[0] + 2 * times[1] + 0.02)
    assert plan.ms((1000, 1000, 512), 1e12, H200) == pytest.approx(1e3 * (3e12 / 790e12 + 20 * 1e6 / 5.5e12) + 0.02)
    wide = Plan((), chunks=(2, 0), wide=("wide cross", "wide narrow"))
    tiles = sum(8 * row["slice"] + row["epilogue"] + predicted.FILL for row in predicted.stored() if row["kernel"] in wide.wide)
    sums = 2 * 16 * (16384 + 8192) * 512 / 4.3e12
    seconds = 2e12 / 790e12 + 63 * tiles / 1.755e9 + sums  # 128 x 64 tiles on 132 multiprocessors
    assert wide.ms((16384, 16384, 512), 1e12, H200) == pytest.approx(1e3 * seconds + 0.02)
    info_nce = WORKLOADS["info_nce"]
    assert info_nce.case.flops((256, 64)) == 4 * (2 * 256 * 256 * 64) == 4 * info_nce.sweep_flops((256, 64))
    call, factor = timing.product_call((40, 40, 8), torch.float32)
    assert call().shape == (40, 40) and factor == 1


def test_turns_are_shared_and_spread():
    assert timing.plan_samples(0.01, 2.0, 7) == 200 and timing.plan_samples(0.1, 2.0, 7) == 20
    assert (
        timing.plan_samples(1.0, 2.0, 7) == 7 and timing.plan_samples(5.0, 2.0, 7) == 4 and timing.plan_samples(60.0, 2.0, 7) == 3
    )
    assert [sum(timing.takes_part(index, samples, 20) for index in range(20)) for samples in (1, 3, 7, 20)] == [1, 3, 7, 20]
    calls = {"a": lambda: None, "b": lambda: torch.ones(10)}
    times = timing.time_interleaved(calls, "cpu", 0.05, 5)
    assert all(t.p20 <= t.ms <= t.p80 and t.rounds >= 5 for t in times.values())


@pytest.mark.parametrize(
    ("kind", "value", "got", "met"),
    (("times_faster", 2, "3", True), ("times_faster", 4, "3", False), ("times_limit", 1.15, "2", False), ("ms", 10, "10", True)),
)
def test_targets_are_judged(kind, value, got, met):
    ours = {"status": "ok", "ms": 10.0, "share_of_limit": 0.5, "peak_mb": 10.0}
    entries = {"fastssl": ours, "eager": {"status": "ok", "ms": 30.0, "times_ours": 3.0}}
    judged = runner.judge(Target(SHAPE, kind, value, "eager"), entries, limit_ms=5.0)
    assert (judged["got"], judged["met"]) == (got, met)
    undecided = runner.judge(Target(SHAPE, "times_faster", 2, "lightly"), entries, limit_ms=5.0)
    assert undecided["met"] is None and undecided["got"] == "not measured"


def test_results_round_trip_into_tables_and_pictures(tmp_path):
    options = replace(FAST, peers=("eager", "memeff"))
    for shape in (SHAPE, (48, 16)):
        case = runner.run_case(NT_XENT, shape, options, QUIET)
        path = runner.save(runner.result(NT_XENT, "cpu", [case]), tmp_path / "cpu-test")
    found = runner.read(path)
    assert [case["shape"] for case in found["cases"]] == [[24, 16], [48, 16]] and found["machine"]["threads"] >= 1
    assert json.loads(path.read_text())["cases"][1] == json.loads(json.dumps(case))
    text = report.workload_report(found)
    assert "### NT-Xent (SimCLR), forward + backward, 24 x 16" in text and "- memeff: other objective:" in text
    assert f"{report.number(case['entries'][0]['ms'])} (" in text
    pytest.importorskip("matplotlib")
    (picture,) = plots.draw(found, tmp_path / "pictures")
    assert picture.stat().st_size > 20_000


def test_runs_of_a_case_are_joined_by_the_medians_of_their_ratios():
    def run(ours, eager, limit, memory):
        entries = [
            {"implementation": "fastssl", "status": "ok", "ms": ours, "share_of_limit": limit / ours, "times_ours": 1.0} | memory,
            {"implementation": "eager", "status": "ok", "ms": eager, "times_ours": eager / ours},
        ]
        case = {"shape": list(SHAPE), "dtype": "float32", "device": "cpu", "date": str(ours), "commit": "", "limit_ms": limit}
        return case | {"entries": entries, "targets": []}

    wanted = (Target(SHAPE, "times_faster", 2.5, "eager"), Target(SHAPE, "times_limit", 1.9))
    workload = replace(NT_XENT, targets=wanted)
    found = runs.joined(workload, [run(10.0, 30.0, 5.0, {"peak_mb": 7.0}), run(40.0, 80.0, 20.0, {}), run(11.0, 44.0, 6.0, {})])
    ours, eager = found["entries"]
    assert (ours["ms"], ours["peak_mb"], eager["ms"], eager["times_ours"]) == (11.0, 7.0, 44.0, 3.0)
    assert found["limit_ms"] == 6.0 and found["runs"] == 3 and found["date"] == "11.0"
    assert [(verdict["got"], verdict["met"]) for verdict in found["targets"]] == [("3", True), ("2", False)]
    broken = run(9.0, 30.0, 5.0, {})
    broken["entries"][0] = {"implementation": "fastssl", "status": "wrong", "reason": "far off"}
    assert runs.joined(workload, [run(10.0, 30.0, 5.0, {}), broken])["entries"][0]["status"] == "wrong"


def test_16_bits_are_compared_with_our_own_float32_and_with_the_peak_of_their_unit(monkeypatch):
    found = peaks.Peak("bfloat16", "dots", 250e9, 240e9)
    monkeypatch.setattr(peaks, "peak_of", {torch.bfloat16: found, torch.float32: None}.get)
    case = runner.run_case(NT_XENT, SHAPE, replace(FAST, dtype=torch.bfloat16), QUIET)
    ours, wide = case["entries"][:2]
    assert (ours["implementation"], wide["implementation"]) == ("fastssl", "fastssl_float32")
    assert wide["grad_error"] < 1e-5 < ours["grad_error"], "the same values, in float32"
    assert ours["share_of_peak"] == pytest.approx(NT_XENT.case.flops(SHAPE) / (ours["ms"] * 1e-3) / 250e9)
    text = report.case_table({"title": "NT-Xent", "axes": NT_XENT.axes}, case)
    assert "Peak 250 GFLOP/s: bfloat16 by dots, in registers, 240 in a tile that stays in L2." in text and "of the peak" in text
    case = runner.run_case(NT_XENT, SHAPE, FAST, QUIET)
    assert "peak" not in case and [entry["implementation"] for entry in case["entries"]] == ["fastssl", "eager"]
    assert "of the peak" not in report.case_table({"title": "NT-Xent", "axes": NT_XENT.axes}, case)


def test_results_without_a_peak_have_no_column_of_it():
    entry = {"implementation": "fastssl", "ms": 2.0, "share_of_limit": 0.5}
    case = {"shape": [8, 4], "dtype": "float32", "entries": [entry]}
    found = {"axes": "B x D", "cases": [case, case]}
    assert "of the peak" not in report.peer_table(found)
    found["cases"] = [case, case | {"entries": [entry | {"share_of_peak": 0.25}]}]
    table = report.peer_table(found)
    assert "| fastssl | of the limit | of the peak |" in table and "| 50 % | - |" in table and "| 50 % | 25 % |" in table


def test_the_limit_of_16_bits_is_the_faster_product(monkeypatch):
    shape = (16, 24, 8)
    for milliseconds, expected in (((1.0, 2.0), torch.float16), ((9.0, 2.0), torch.float32)):
        times = dict(zip((torch.float16, torch.float32), milliseconds, strict=True))
        monkeypatch.setattr(timing, "once_ms", lambda call, device, times=times: times[call().dtype])
        assert timing.product_dtype(shape, torch.float16) == expected
        assert (
            timing.product_dtype(shape, torch.float32) == torch.float32 and timing.product_dtype(shape, torch.float64).itemsize == 8
        )


def test_every_target_of_a_cpu_is_at_a_shape_that_is_measured_there():
    for workload in WORKLOADS.values():
        for target in workload.targets:
            shapes = workload.cpu_shapes(getattr(torch, target.dtype)) + workload.scale
            assert target.shape in shapes, f"{workload.name}: {target} at {target.shape} in {target.dtype}"
    assert str(Target(SHAPE, "times_faster", 2, "fastssl_float32")) == ">= 2x fastssl in float32"


def test_a_default_run_is_in_float32_and_dtypes_have_their_shapes():
    args = bench._parser(tuple(WORKLOADS), peers.NAMES).parse_args

    def cases(*words):
        options = bench._options(args(words), runner, peers)
        return [(str(each.dtype)[6:], shape) for each, shape in bench._cases(args(words), registry, NT_XENT, options)]

    assert cases("--device", "cpu") == [("float32", shape) for shape in NT_XENT.shapes]
    both = cases("--device", "cpu", "--dtype", "bfloat16,float32", "nt_xent")
    assert both == [("bfloat16", shape) for shape in NT_XENT.sixteen] + [("float32", shape) for shape in NT_XENT.shapes]
    update = WORKLOADS["adamw"]
    once = bench._cases(args(["--quick"]), registry, update, bench._options(args(["--dtype", "float32,float16"]), runner, peers))
    assert len(once) == len(update.quick), "it is measured in float32 only"


def test_old_result_files_are_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="has schema 0"):
        runner.read(tmp_path / "old.json")


def test_command_line_words(capsys, monkeypatch, tmp_path):
    assert bench.main(["--list"]) == 0 and "pytorch_metric_learning" in capsys.readouterr().out
    assert main(["bench", "triplets"]) == 2 and "unknown workload 'triplets'" in capsys.readouterr().err
    assert main(["bench", "nt_xent", "--shapes", "12"]) == 2 and "must read like 256x128" in capsys.readouterr().err
    out = ["--out", str(tmp_path), "--peers", "none", "--no-memory", "--budget", "0.1"]
    assert bench.main(["nt_xent", "--shapes", "16x8", "--device", "cpu", *out]) == 0 and (tmp_path / "nt_xent.json").exists()
    monkeypatch.setattr(bench, "_ROOT", tmp_path)
    assert main(["bench", "--list"]) == 2 and "no benchmarks folder beside" in capsys.readouterr().err
    assert parse_shape("4096X128", NT_XENT) == (4096, 128)


def test_device_slug_has_no_odd_characters(monkeypatch):
    assert machine.slug("cpu").startswith("cpu-")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 (SXM)")
    assert machine.slug("cuda") == "nvidia-h200-sxm"
