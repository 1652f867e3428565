"""The plan of fifteen minutes on a GPU under a clock that moves only where somebody waits: stages that hang, crash, are killed."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import types

import pytest
import torch

from benchmarks.core import rates, timing
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import build as gpu_build
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import prepare as gpu_prepare
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu import tests as gpu_tests
from benchmarks.gpu.plan import Slot
from benchmarks.gpu.run import Run, Step
from fastssl import info

CALLS = tuple(gpu_plan.CALLS)
ENDS = {"well", "slow", "hangs", "deaf", "stuck", "crashes", "killed", "absent"}
#: Tests and cases that a stand-in process has done before its end.
TESTS = 10


class Process:
    """A stand-in: ``how`` it ends. "hangs" heeds SIGTERM, "deaf" SIGKILL alone, "stuck" nothing, since the driver holds it."""

    def __init__(self, world, pid: int, how: str, seconds: float):
        self.world, self.pid, self.how, self.returncode = world, pid, how, None
        self.ends = world.now + (seconds if how in ("well", "slow") else 0.5 if how in ("crashes", "killed") else math.inf)
        self.code = {"crashes": 1, "killed": -9}.get(how, 0)

    def poll(self):
        if self.returncode is None and self.ends <= self.world.now:
            self.returncode = self.code
        return self.returncode

    def wait(self, timeout):
        self.world.now = min(max(self.world.now, self.ends), self.world.now + timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("stand-in", timeout)
        return self.returncode

    def signal(self, number: int) -> None:
        if self.poll() is not None:
            raise ProcessLookupError
        if self.how in ("well", "slow", "hangs") or (self.how == "deaf" and number == signal.SIGKILL):
            self.ends, self.code = self.world.now, -number


class World:
    """The clock, the processes and the GPU of a call. ``how(words)``: how the process of a command ends."""

    def __init__(self, how):
        self.now, self.how, self.processes = 0.0, how, {}

    def sleep(self, seconds):
        self.now += seconds

    def killpg(self, pid, number):
        self.processes[pid].signal(number)

    def popen(self, command, **_):
        how = self.how(" ".join(command))
        if how == "absent":
            raise FileNotFoundError("no such tool")
        seconds = 3.0 if how == "well" else 400.0
        if "--report-lines" in command:
            self._tests(command[command.index("--report-lines") + 1], how)
        if "--progress" in command:
            seconds = self._cases(command, how)
        pid = 10_000_000 + len(self.processes)
        self.processes[pid] = Process(self, pid, how, seconds)
        return self.processes[pid]

    def _tests(self, path, how):
        done = TESTS if how == "well" else 4
        line = {"outcome": "passed", "seconds": 1.0, "place": "", "message": ""}
        lines = [{"collected": TESTS}, *({"test": f"test_{k}"} | line for k in range(done))]
        with open(path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _cases(self, command, how) -> float:
        """Writes what a process says of its cases: all at once, since nothing else moves this clock."""
        with open(command[3]) as file:
            todo = list(enumerate(json.load(file)))[int(command[command.index("--first") + 1]) :]
        with open(command[command.index("--progress") + 1], "w") as file:
            for k, _ in todo if how == "well" else todo[:1]:
                file.write(json.dumps({"case": k, "state": "begin"}) + "\n")
                if how == "well":
                    file.write(json.dumps({"case": k, "state": "ok", "seconds": 3.0}) + "\n")
        return 3.0 * len(todo) if how == "well" else 400.0


@pytest.fixture
def play(tmp_path, monkeypatch):
    """``play(call, how, seconds)`` -> (the run, seconds by the clock, summary.md, exit status)."""
    runs = []

    def record(*args, **kwargs):
        runs.append(Run(*args, scratch=tmp_path / f"scratch{len(runs)}", **kwargs))
        return runs[-1]

    def once(call: str, how, *words: str):
        world, out = World(how), tmp_path / f"out{len(runs)}"
        clock = types.SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep)
        for module in (gpu, gpu_run, gpu_bench, gpu_tests):
            monkeypatch.setattr(module, "time", clock)
        asked = types.SimpleNamespace(stdout="NVIDIA H200, 9.0\n")
        names = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired")}
        stand_in = types.SimpleNamespace(Popen=world.popen, run=lambda *_, **__: asked, **names)
        monkeypatch.setattr(gpu_run, "subprocess", stand_in)
        monkeypatch.setattr(os, "killpg", world.killpg)
        monkeypatch.setattr(gpu_build, "BUILT", tmp_path / f"built{len(runs)}.json")
        monkeypatch.setattr(gpu_profile.shutil, "which", lambda name: f"/bin/{name}")
        status = gpu.main(["--call", call, "--out", str(out), "--commit", "abc", *words])
        return runs[-1], world.now, (out / "summary.md").read_text(), status

    monkeypatch.setattr(gpu, "Run", record)
    return once


def accounted(run, call: str, summary: str) -> list[str]:
    """Stages, and cases of the measured ones, that the summary does not mention."""
    stages = [slot.stage for slot in gpu_plan.slots_of(call)]
    said = {step.name.split()[0] for step in run.steps} | {line.partition(":")[0] for line in run.dropped}
    said |= {"smoke"} if any("smoke" in line for line in run.dropped) else set()
    missing = [stage for stage in stages if stage not in said and f"{stage}:" not in summary]
    for step in run.steps:
        if step.state in ("no time left", "not run") and step.name.split()[0] in ("smoke", "bench"):
            missing += [step.name] if not any(step.name in line for line in run.dropped) else []
    return missing


# --- the whole schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", sorted(ENDS))
def test_a_call_ends_in_time_whatever_its_processes_do(play, call, how):
    run, took, summary, status = play(call, lambda words: how)
    seconds = gpu_plan.seconds_of(call, 15)
    assert took <= seconds and run.total_s == seconds
    assert accounted(run, call, summary) == []
    assert (status == 0) == (how == "well"), "nothing went wrong, or something did"
    assert ("Nothing was dropped." in summary) == (not run.dropped)
    assert bool(run.dropped) == (how != "well") or (call, how) in (("second", "crashes"), ("second", "killed"))


@pytest.mark.parametrize("seed", range(12))
def test_a_call_ends_in_time_where_each_process_ends_as_it_likes(play, seed):
    """Of each kind of process any end, and any seconds for the call: what does not fit is dropped by name."""
    luck = random.Random(seed)
    kinds = ("nvidia-smi", "-c ", "setup.py", "fastssl info", "gpu.cases", "-m large", "not large", "ncu")
    for call in CALLS:
        chosen = {kind: luck.choice(sorted(ENDS)) for kind in kinds}
        seconds = luck.choice((60, 150, gpu_plan.seconds_of(call, 15)))
        how = lambda words, chosen=chosen: next((end for kind, end in chosen.items() if kind in words), "well")  # noqa: E731
        run, took, summary, _ = play(call, how, "--seconds", str(seconds))
        assert took <= seconds, (call, chosen)
        assert accounted(run, call, summary) == [] and "Not ended" not in summary, (call, chosen)


def test_two_calls_a_start_and_a_rerun_are_fifteen_minutes():
    start, between, rerun = 100, 20, 120
    assert start + between + rerun + sum(gpu_plan.seconds_of(call, 15) for call in CALLS) <= 900
    assert max(gpu_plan.seconds_of(call, 15) for call in CALLS) < 600 - 2 * gpu_plan.STOP_S
    assert gpu_plan.seconds_of("both", 15) == sum(gpu_plan.seconds_of(call, 15) for call in CALLS)


def test_a_build_that_hangs_costs_its_limit_and_tests_are_cut_not_lost(play):
    ends = {"setup.py": "stuck", "not large": "slow"}
    run, took, summary, _ = play("first", lambda words: next((end for kind, end in ends.items() if kind in words), "well"))
    states = {step.name: step.state for step in run.steps}
    assert states["build"].startswith("stopped after") and states["tests"].startswith("stopped after")
    assert states["large"] == "ok", "its least seconds are kept for it"
    assert "- 6 tests of tests: stopped after" in summary and took <= 450


# --- what ends a call ---------------------------------------------------------------------------------------------------------


def test_a_failure_of_everything_in_smoke_ends_the_call(play, capsys):
    run, took, summary, status = play("first", lambda words: "crashes" if "gpu.cases" in words else "well")
    assert "workloads failed in smoke, the first: smoke" in run.halted and status == 1 and took < 60
    assert run.dropped == ["tests: the call was ended early", "large: the call was ended early"]
    said = capsys.readouterr().out
    assert f"**Ended early: {run.halted}.** Mend that and run the call again." in said and run.halted in summary


def test_a_machine_without_a_gpu_is_left_at_once(play, monkeypatch):
    monkeypatch.setitem(gpu.ACTIONS, "device", lambda run: setattr(run, "halted", "torch 2.11 finds no GPU"))
    run, took, summary, _ = play("first", lambda words: "well")
    assert took == 0 and len(run.dropped) == 4 and "torch 2.11 finds no GPU" in summary


def test_the_device_is_described_with_and_without_a_gpu(monkeypatch, capsys):
    """The text of the process itself, whose answers of the device are stand-ins."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        exec(gpu_build._PROPERTIES, {})
    assert ended.value.code == gpu_build.NO_GPU and "finds no GPU" in capsys.readouterr().out
    answers = {
        "is_available": True,
        "get_device_name": "NVIDIA H200",
        "get_device_capability": (9, 0),
        "mem_get_info": (2**30,) * 2,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(timing, "gpu_product_rate", lambda dtype: 8e14)
    monkeypatch.setattr(timing, "gpu_memory_rate", lambda *size, repeats=3: 5e12 if size else 4e12)
    rates.measured.cache_clear()
    exec(gpu_build._PROPERTIES, {})
    said = capsys.readouterr().out
    rates.measured.cache_clear()
    assert "copy of 2.1 GB: 4.00 TB/s" in said and "into L2: 5.00 TB/s" in said and "cube: 800 TFLOP/s" in said
    assert "rates of the predictions: Rates(name='H200'" in said and '"slug": "nvidia-h200"' in said


def test_what_counts_as_a_failure_of_everything():
    names = ("nt_xent", "moco", "clip", "ema", "lars", "adamw", "mask_ids", "queue_push")
    found = [gpu_bench.Case(name, (8,), "float32", ()) for name in names]
    verdict = lambda *bad: gpu_bench.global_failure(  # noqa: E731
        [Step(f"smoke {case}", "wrong: 0.1" if case.workload in bad else "ok") for case in found], found
    )
    assert verdict() == verdict("nt_xent", "moco", "ema", "lars") == "", "half of them: the tests have something to tell"
    assert verdict("nt_xent", "moco", "clip").startswith("3 of 3 losses failed in smoke")
    assert verdict("ema", "lars", "adamw", "mask_ids", "queue_push").startswith("5 of 8 workloads")
    assert verdict("nt_xent", "ema", "lars", "adamw", "mask_ids").startswith(
        "5 of 8 workloads failed in smoke, the first: smoke nt_xent"
    )
    assert gpu_bench.global_failure([], found) == "smoke ran no workload" and gpu_bench.global_failure([], []) == ""


# --- limits ---------------------------------------------------------------------------------------------------------------------


def test_no_stage_takes_what_another_needs():
    for stages in (*gpu_plan.CALLS.values(), ("wheels", "build", "tune", "profile", "steps")):
        for left_s in (5, 40, 90, 130, 200, 445, 900):
            todo, spent = gpu_plan.kept(gpu_plan.slots(stages), left_s), 0.0
            for k, slot in enumerate(todo):
                limit = gpu_plan.limit_s(todo[k:], left_s - spent)
                assert limit >= slot.least_s - 1e-9, (slot, left_s)
                spent += limit
            assert spent <= left_s + 1e-9


def test_the_least_worth_is_dropped_first():
    todo = [Slot("a", 10, 10, 10, worth) for worth in (2, 3, 1)]
    assert [[slot.worth for slot in gpu_plan.kept(todo, left)] for left in (30, 29, 19, 9)] == [[2, 3, 1], [2, 3], [3], []]
    assert gpu_plan.limit_s([Slot("a", 10, 40, 5, 1), Slot("b", 90, 10, 70, 1)], 100) == 30, "its most, but b keeps its least"
    assert gpu_plan.limit_s([Slot("a", 60, 40, 5, 1), Slot("b", 40, 10, 5, 1)], 100) == 60, "its share"
    shown = gpu_plan.table(gpu_plan.slots_of("first"), 100)
    assert "| large |  | 80 | dropped | 30 | 1 |" in shown and "| build | 0:00 | 50 |" in shown
    assert set(gpu.ACTIONS) == set(gpu_plan.SLOTS) and len(gpu.STAGES) == 12
    worths = [[slot.worth for slot in gpu_plan.slots_of(call)] for call in (*CALLS, "both")]
    assert all(len(set(found)) == len(found) for found in worths), "an order"


# --- before ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A checkout with a tracked file of 3 KB, an untracked one of 2 KB, an ignored one and a wheel of 5 KB."""
    root = tmp_path / "tree"
    (root / ".wheels").mkdir(parents=True)
    sizes = {"kept.py": 3000, "new file.py": 2000, "ignored.so": 9000, ".wheels/peer.whl": 5000, "gone.py": 10}
    for name, size in sizes.items():
        (root / name).write_bytes(b"x" * size)
    (root / ".gitignore").write_text("*.so\n.wheels/\n")
    for words in (("init", "-q"), ("add", "kept.py", "gone.py", ".gitignore")):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    (root / "gone.py").unlink()
    return root


def test_a_tree_that_would_not_travel_is_refused(tree, tmp_path, monkeypatch, capsys):
    found = gpu_prepare.carried(tree)
    assert found == [(5000, ".wheels/peer.whl"), (3000, "kept.py"), (2000, "new file.py"), (14, ".gitignore")]
    assert gpu_prepare.check_carried(found, 10_014) == ""
    refused = gpu_prepare.check_carried(found, 10_013)
    assert "at most 0 MiB travel" in refused and refused.index("peer.whl") < refused.index("kept.py")
    played = []
    monkeypatch.setattr(gpu_prepare, "carried", lambda: found)
    monkeypatch.setattr(gpu, "main", lambda words: played.append(words) or 0)
    assert gpu.prepare(tmp_path, 15) == 0
    assert [words[words.index("--call") + 1] for words in played] == list(CALLS) and all("cpu" in words for words in played)
    said = capsys.readouterr().out
    assert all(f"python3 -m benchmarks.gpu --call {call} --out DIR --commit " in said for call in CALLS)
    played.clear()
    monkeypatch.setattr(gpu_prepare, "carried", lambda: [(gpu_prepare.CARRIED_BYTES + 1, "huge.bin")])
    assert gpu.prepare(tmp_path, 15) == 1 and played == [] and "huge.bin" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(gpu_prepare.carried, "__defaults__", (tmp_path,))
    assert gpu.prepare(tmp_path, 15) == 1 and "git does not list the files" in capsys.readouterr().out, "no checkout"


def test_ops_that_no_kernel_serves_are_named(tmp_path, monkeypatch):
    """They would pass smoke and the tests without a kernel having run."""
    owners = {"ema_update_": {"CPU": "C++", "CUDA": "reference"}, "lars_": {"CPU": "reference", "CUDA": "CUDA C++"}}
    monkeypatch.setattr(info, "OWNERS", owners)
    assert gpu_build.unserved(info.report()) == ["ema_update_"] and gpu_build.unserved("Traceback") == []
    run = Run(tmp_path, scratch=tmp_path / "scratch")
    for name in ("build", "info"):
        (run.folder("logs") / name).write_text(info.report())
    monkeypatch.setattr(gpu_build, "BUILT", tmp_path / "built.json")
    monkeypatch.setattr(run, "step", lambda name, *_: run.record(Step(name, "ok", log=run.folder("logs") / name)))
    gpu_build.build(run)
    assert [step.bad for step in run.steps] == [False, True] and "without a kernel on this GPU: 1" in run.steps[1].state
    assert "Plain PyTorch serves ema_update_: " in (run.scratch / "reports" / "build.md").read_text()


def test_what_is_built_is_not_built_again_unless_its_sources_changed(tmp_path, monkeypatch):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "fastssl").mkdir()
    (tmp_path / "build").mkdir()
    for name in ("setup.py", "csrc/a.cu", "fastssl/_cuda.so"):
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(gpu_build, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_build, "BUILT", tmp_path / "build" / "gpu_build.json")
    monkeypatch.setattr(gpu_build, "this_gpu", lambda: ("NVIDIA H100 80GB HBM3", "9.0"))
    built, states = [], itertools.cycle(["ok"])
    run = Run(tmp_path, scratch=tmp_path / "scratch")

    def step(name, command, limit_s, env=None):
        built.append((name, env))
        return run.record(Step(name, next(states)))

    monkeypatch.setattr(run, "step", step)
    gpu_build.build(run)
    os.utime(tmp_path / "csrc" / "a.cu", (0, 0))
    gpu_build.build(run)
    assert [name for name, _ in built] == ["build", "info"] and built[0][1] == {"FASTSSL_CUDA_ARCH": "9.0"}
    assert run.steps[-1].state == "skipped: these sources are built already"
    (tmp_path / "csrc" / "a.cu").write_text("two")
    gpu_build.build(run)
    assert len(built) == 4
    (tmp_path / "fastssl" / "_cuda.so").unlink()
    gpu_build.build(run)
    assert len(built) == 6
