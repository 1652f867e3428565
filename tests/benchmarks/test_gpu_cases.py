"""The cases of a GPU run: their order, the processes that measure, warm and profile them; rehearsed without a GPU."""

import json
import os
import sys
import tarfile
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest

from benchmarks.core import machine, runner
from benchmarks.core.registry import WORKLOADS
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu.bench import Lane
from benchmarks.gpu.cases import CONTEXT_LOST, Case
from benchmarks.gpu.run import Run
from tests.support.rotation import every


@pytest.fixture
def run(tmp_path):
    """A run with its scratch folder under ``tmp_path``; DIR is tmp_path/out."""
    (tmp_path / "out").mkdir()
    made = Run(tmp_path / "out", workloads=tuple(WORKLOADS), scratch=tmp_path / "scratch")
    yield made
    made.abandon()


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def test_cases_with_targets_come_first_and_compile_where_one_names_it(run):
    found = gpu_bench.cases(run)
    first = found[: len({(case.workload, case.shape, case.dtype) for case in found})]
    assert {(case.workload, case.shape) for case in first} >= {(w.name, shape) for w in WORKLOADS.values() for shape in w.gpu}
    aimed = {(w.name, t.shape, t.dtype) for w in WORKLOADS.values() for t in w.gpu_targets} | {("clip", (16384, 512), "bfloat16")}
    assert {(case.workload, case.shape, case.dtype) for case in first[: len(aimed)]} == aimed
    assert all("eager" in case.peers for case in found)
    named = {(w.name, t.shape, t.dtype) for w in WORKLOADS.values() for t in w.gpu_targets if t.peer == "compile"}
    assert {(case.workload, case.shape, case.dtype) for case in first if "compile" in case.peers} == named != set()
    again = found[len(first) :]
    assert {(case.workload, case.shape, case.dtype) for case in again}.isdisjoint(named)
    assert all("compile" in case.peers for case in again)
    assert ("ema", ("vit_l16",)) not in {(case.workload, case.shape) for case in again}, "torch.compile has no form of it"
    assert ("nt_xent", (4096, 128), "float32") in {(case.workload, case.shape, case.dtype) for case in first}
    assert "for an H200: " in gpu_bench.predictions(found, "NVIDIA H200")
    assert "ema vit_l16 0.849 ms, " in gpu_bench.predictions(found, "NVIDIA H200")
    assert "ema vit_l16 1.22 ms or 0.849 ms, " in gpu_bench.predictions(found), "where nobody says which it is"
    assert not any("compile" in case.peers for case in gpu_bench.cases(replace(run, peers=("eager",))))
    assert {case.workload for case in gpu_bench.cases(replace(run, workloads=("lars", "nt_xent")))} == {"lars", "nt_xent"}


def test_quick_cases_are_one_of_each_work(run):
    small = gpu_bench.cases(replace(run, quick=True))
    assert sorted(case.workload for case in small) == sorted(WORKLOADS)
    assert ("nt_xent", (256, 128)) in {(case.workload, case.shape) for case in small}
    rehearsed = gpu_bench.cases(replace(run, device="cpu"))
    assert {(case.workload, case.shape) for case in rehearsed} == {(w.name, w.quick[0]) for w in WORKLOADS.values()}


def test_every_kernel_is_warmed_once(run):
    found = gpu_bench.warm_cases(gpu_bench.cases(run))
    pairs = [(case.workload, case.shape, case.dtype, peer) for case in found for peer in case.peers]
    assert len(pairs) == len(set(pairs)) and {pair[3] for pair in pairs} <= set(gpu_bench.COMPILED)
    assert ("nt_xent", (32768, 128), "bfloat16", "compile") not in pairs, "its matrix is too large beside others"
    assert ("moco", (1024, 65536, 128), "bfloat16", "compile") in pairs
    losses = {(w.name, shape) for w in WORKLOADS.values() if w.kind == "loss" for shape in w.gpu}
    assert losses <= {(case.workload, case.shape) for case in found} and "ema" not in {case.workload for case in found}
    assert all(case.shape in WORKLOADS[case.workload].gpu for cases in gpu_profile.GROUPS.values() for case in cases)
    assert [case.workload for case in gpu_profile.SHORT["short"]] == ["nt_xent", "moco", "clip", "siglip"]


#: Stands for the process that measures: a case's first size says how it ends.
CHILD = """
import json, os, sys, time
cases, progress, first = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[sys.argv.index("--first") + 1])
def say(**line):
    open(progress, "a").write(json.dumps(line) + "\\n")
for k, case in list(enumerate(cases))[first:]:
    say(case=k, state="begin")
    how = case["shape"][0]
    if how == 1: os._exit(9)
    if how == 2: time.sleep(60)
    say(case=k, state="failed: device" if how == 3 else "ok", seconds=0.1)
    if how == 3: sys.exit(3)
"""


def _stand_in(monkeypatch, code):
    monkeypatch.setattr(gpu_bench, "_command", lambda run, path, progress, *words: python(code, str(path), str(progress), *words))
    monkeypatch.setattr(gpu_bench, "CASE_S", 1.5)


def test_a_case_that_takes_the_process_down_costs_only_itself(run, monkeypatch):
    _stand_in(monkeypatch, CHILD)
    found = [Case(f"work{k}", (how,), "float32", ()) for k, how in enumerate((0, 1, 0, 2, 3, 0, 1))]
    lost = gpu_bench.serve(run, [Lane(run, "bench", found)], time.monotonic() + 60)
    states = ["ok", "exit 9", "ok", "stopped after 2 s", "failed: device", "ok", "exit 9"]
    assert [step.state for step in run.steps] == states
    assert [case.workload for case in lost] == ["work1", "work3", "work4", "work6"] and CONTEXT_LOST == 3


def test_cases_end_with_the_time(run, monkeypatch):
    _stand_in(monkeypatch, CHILD)
    monkeypatch.setattr(gpu_bench, "CASE_S", 60)
    found = [Case(f"work{k}", (how,), "float32", ()) for k, how in enumerate((0, 2, 0))]
    assert gpu_bench.serve(run, [Lane(run, "bench", found)], time.monotonic() + 2) == []
    assert [step.state for step in run.steps] == ["ok", "no time left", "no time left"]
    assert run.dropped == ["bench work1 2 float32, bench work2 0 float32: no time left"]


def test_lanes_run_side_by_side_and_end_together(run, monkeypatch):
    _stand_in(monkeypatch, CHILD)
    monkeypatch.setattr(gpu_bench, "CASE_S", 60)
    lanes = [Lane(run, "smoke", [Case(f"work{k}", (how,), "float32", ())], number=k) for k, how in enumerate((2, 0, 1, 2))]
    begin = time.monotonic()
    assert [case.workload for case in gpu_bench.serve(run, lanes, begin + 3)] == ["work2"]
    assert time.monotonic() - begin < 3 + gpu_plan.STOP_S and not any(lane.process for lane in lanes)
    states = {step.name.split()[1]: step.state for step in run.steps}
    assert states == {"work0": "no time left", "work1": "ok", "work2": "exit 9", "work3": "no time left"}


def test_a_process_that_cannot_start_is_not_tried_for_every_case(run, monkeypatch):
    _stand_in(monkeypatch, "raise ImportError('no torch')")
    found = [Case(f"work{k}", (0,), "float32", ()) for k in range(4)]
    gpu_bench.serve(run, [Lane(run, "bench", found)], time.monotonic() + 60)
    assert [step.state for step in run.steps] == ["exit 1", "not run", "not run", "not run"]
    assert "no torch" in (run.out / "log.txt").read_text()


def test_lost_cases_are_tried_with_eager_only_where_nothing_was_measured(run, monkeypatch):
    tried = []

    def serve(run, lanes, until):
        (lane,) = lanes
        tried.append(lane)
        return lane[1] if lane[0] == "bench" else []

    monkeypatch.setattr(gpu_bench, "serve", serve)
    monkeypatch.setattr(gpu_bench, "Lane", lambda run, name, found, *words: (name, found))
    found = [Case("mask_ids", (8, 20), "float32", ("eager", "compile")), Case("mask_ids", (9, 20), "float32", ("compile",))]
    kept, where = {"shape": [8, 20], "dtype": "float32", "rows": 8}, {"slug": "nvidia-h200"}
    runner.save({"schema": runner.SCHEMA, "work": "mask_ids", "machine": where, "cases": [kept]}, run.results / "nvidia-h200")
    (run.results / "nvidia-h200" / "ema.json").write_text('{"schema": ')  # a process was stopped while it wrote
    monkeypatch.setattr(gpu_bench, "cases", lambda run: found)
    monkeypatch.setattr(gpu_bench, "comparison", lambda found: "")
    monkeypatch.setattr(gpu_bench.plots, "draw", lambda found, folder: None)
    gpu_bench.bench(run)
    assert tried[1] == ("bench eager only", [Case("mask_ids", (9, 20), "float32", ("eager",))])


def test_cases_are_measured_one_after_another(tmp_path, monkeypatch):
    cases = [Case("mask_ids", (8, 20), "float32", ("eager",)), Case("mask_ids", (1, 1, 1), "float32", ())]
    cases.append(Case("queue_push", (8, 40, 16), "float32", ("eager",)))
    path, progress = gpu_cases.write_cases(cases, tmp_path / "cases.json"), tmp_path / "progress.jsonl"
    assert gpu_cases.read_cases(path) == cases
    words = [str(path), "--progress", str(progress), "--device", "cpu", "--update-budget", "0.01"]
    assert gpu_cases.main([*words, "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in progress.read_text().splitlines()]
    assert [(line["case"], line["state"] == "ok") for line in lines if line["state"] != "begin"] == [
        (0, True),
        (1, False),
        (2, True),
    ]
    here = tmp_path / machine.slug("cpu")
    assert runner.read(here / "mask_ids.json")["cases"][0]["shape"] == [8, 20] and (here / "queue_push.json").exists()
    monkeypatch.setattr(gpu_cases, "_context_lost", lambda device: True)
    assert gpu_cases.main([*words, "--out", str(tmp_path)]) == CONTEXT_LOST
    assert len(progress.read_text().splitlines()) == len(lines) + 2, "the first case was the last"


def test_warming_runs_ours_and_the_peers_that_fit(monkeypatch):
    called = []
    monkeypatch.setattr(gpu_cases, "bound", lambda case, name, device: lambda: called.append(name))
    case = Case("nt_xent", (24, 16), "float32", ("compile", "siglip_kernel"))
    assert gpu_cases.warm(case, "cpu") == "" and called == ["fastssl", "compile"]
    monkeypatch.undo()
    steps = [
        gpu_cases.bound(Case(name, shape, "float32", ()), "fastssl", "cpu")
        for name, shape in (("nt_xent", (24, 16)), ("ema", ("tiny",)))
    ]
    for step in steps:
        step()
    broken = gpu_cases.warm(Case("moco", (4, 4), "float32", ()), "cpu")
    assert broken.startswith("fastssl: ")


# --- profiles -----------------------------------------------------------------------------------------------------------------


def test_profiles_become_a_table():
    head = ["ID", "Kernel Name", "gpu__time_duration.sum", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"]
    head += ["sm__throughput.avg.pct_of_peak_sustained_elapsed", "lts__throughput.avg.pct_of_peak_sustained_elapsed"]
    head += ["gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", "launch__registers_per_thread"]
    head += ["sm__warps_active.avg.pct_of_peak_sustained_active"]
    rows = [
        ["", "", "ns", "%", "%", "%", "%", "register/thread", "%"],
        [0, "void spin_kernel(long)", 900, 0, 0, 0, 0, 16, 1],
        [1, "fwd_kernel", 1000, 71.5, 60, 20, 5, 200, 12.4],
        [2, "fwd_kernel", "3,000,000", 72.5, 61, 21, 6, 200, 12.5],
        [3, "void spin_kernel(long)", 900, 0, 0, 0, 0, 16, 1],
        [4, "void ema_kernel<float, 4>(float*)", 849_000, 0, 10, "n/a", 55, 40, 90],
    ]
    text = "==PROF== Connected\n" + "\n".join(",".join(f'"{cell}"' for cell in row) for row in [head, *rows])
    cases = (Case("nt_xent", (4096, 128), "bfloat16", ()), Case("ema", ("vit_l16",), "float32", ()))
    tile, update = gpu_profile.read_profile(text, cases)
    assert (tile.case, tile.launches, tile.values["us"], tile.values["tensor %"]) == (str(cases[0]), 2, 3000.0, 72.5)
    assert tile.binds() == "tensor" and update.binds() == "latency (most: DRAM)" and update.values["L2 %"] is None
    shown = gpu_profile.table([tile, update])
    assert "| ema vit_l16 float32 | ema_kernel<float, 4> | 1 | 849 |" in shown
    assert gpu_profile.read_profile("==ERROR== no permission\n", cases) == []


def test_the_profiler_gets_every_group_and_what_it_says_is_kept(run, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "ncu"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\necho "failed: moco: absent"; echo "left out: clip 8x8"\n'
        'printf \'"Kernel Name","gpu__time_duration.sum"\\n"spin_kernel","1"\\n"k","2000"\\n\' > "$2"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    gpu_profile.profile(run)
    assert [(step.name, step.state, step.note) for step in run.steps] == [
        (f"profile {name}", "ok", "1 kernels") for name in gpu_profile.GROUPS
    ]
    text = (run.out / "profile.txt").read_text()
    assert text.count("| k | 1 | 2.00 |") == 2 and "failed: moco: absent" in text
    assert run.dropped == ["profile of clip 8x8: no time left"] * 2
    run.short = True
    gpu_profile.profile(run)
    assert [step.name for step in run.steps[2:]] == ["profile short"]
    commands = [line for line in (run.out / "log.txt").read_text().splitlines() if "--clock-control none" in line]
    assert ["--set basic" in command for command in commands] == [False, False, True]


def test_a_profiled_process_begins_no_case_late(monkeypatch, capsys):
    """ncu writes when its process ends, so what is measured comes back only where the process ends by itself."""
    begun = []
    monkeypatch.setattr(gpu_profile, "bound", lambda case, *_: begun.append(case) or (lambda: None))
    monkeypatch.setattr(gpu_profile, "release", lambda device: None)
    for name in ("synchronize", "profiler", "_sleep"):
        monkeypatch.setattr(gpu_profile.torch.cuda, name, Mock())
    assert gpu_profile.main(["short", "60"]) == 0 and len(begun) == 4 and capsys.readouterr().out == ""
    assert gpu_profile.main(["short", "-1"]) == 0 and len(begun) == 4
    assert capsys.readouterr().out.count("left out: ") == 4


# --- rehearsals ---------------------------------------------------------------------------------------------------------------


@every(3)
def test_everything_is_rehearsed_on_a_cpu(tmp_path, monkeypatch):
    """Both calls in one, with stand-ins for the stages that would take minutes."""
    for stage in ("build", "tests"):
        monkeypatch.setitem(gpu.ACTIONS, stage, lambda run, stage=stage: run.skip(stage, "stand-in"))
    words = ["--call", "both", "--device", "cpu", "--works", "mask_ids", "--peers", "eager"]
    assert gpu.main(["--out", str(tmp_path), *words]) == 0
    summary = (tmp_path / "summary.md").read_text()
    assert "Nothing was dropped." in summary and "## Smoke: 1 of 1 workloads right" in summary
    measured = ("smoke", "bench")
    assert all(f"| {stage} mask_ids 8x20 float32 | ok |" in summary for stage in measured)
    assert "## Random mask from noise" in summary
    stages = {slot.stage for slot in gpu_plan.slots_of("both")}
    assert all(f"| {stage} | skipped: " in summary for stage in stages if stage not in measured)
    here = machine.slug("cpu")
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        names = set(archive.getnames())
        assert {f"results/{here}/mask_ids.json", f"smoke/{here}/mask_ids.json", "reports/bench.md"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "results.tar.gz", "summary.md"}
