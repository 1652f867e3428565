"""A GPU run, rehearsed without a GPU: limits, what is left behind, tests and their report; stand-ins for what takes long."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.core.registry import WORKLOADS
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import build as gpu_build
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu import tests as gpu_tests
from benchmarks.gpu.run import LOG_BYTES, Run, Step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """A run with its scratch folder under ``tmp_path``; DIR is tmp_path/out."""
    (tmp_path / "out").mkdir()
    made = Run(tmp_path / "out", workloads=tuple(WORKLOADS), scratch=tmp_path / "scratch")
    yield made
    made.abandon()


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# --- processes and their limits ----------------------------------------------------------------------------------------------

SPAWN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(f"child {child.pid}", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_step_is_stopped_at_its_limit_with_all_that_it_started(run):
    step = run.step("sleeper", python(SPAWN), 5)
    assert step.state == "stopped after 5 s" and step.bad
    child = int(re.search(r"child (\d+)", step.output())[1])
    until = time.monotonic() + 10
    while alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child), "it would sleep for 60 s"
    assert "child" in (run.out / "log.txt").read_text()


def test_steps_end_as_they_are_named(run):
    assert run.step("good", python("pass"), 20).ok
    assert run.step("bad", python("raise SystemExit(7)"), 20).state == "exit 7"
    assert run.step("absent", ["no-such-command"], 20).state.startswith("did not start: ")
    skipped = run.skip("idle", "no need")
    assert not skipped.ok and not skipped.bad
    run.total_s = 0.0
    assert run.step("late", python("pass"), 20).state == "no time left"
    assert [step.name for step in run.steps] == ["good", "bad", "absent", "idle", "late"]


def test_steps_together_share_one_limit(run):
    jobs = [(f"job {k}", python("import sys, time; time.sleep(float(sys.argv[1]))", str(s))) for k, s in enumerate((60, 0, 60))]
    states = [step.state.partition(" ")[0] for step in run.together(jobs, 3, 3)]
    assert states == ["stopped", "ok", "stopped"]


def test_a_process_is_ended_with_the_session_of_the_command(run):
    """What kills everything of a session when a command is cut off must find the processes of its stages."""
    step = run.step("child", python("import os; print(os.getsid(0), os.getpgid(0) == os.getpid())"), 20)
    assert step.output().split() == [str(os.getsid(0)), "True"]


def test_long_logs_keep_their_ends(run):
    (run.folder("logs") / "long.txt").write_text("begin" + "." * (3 * LOG_BYTES) + "end")
    run.pack()
    with tarfile.open(run.out / "results.tar.gz") as archive:
        text = archive.extractfile("logs/long.txt").read().decode()
    assert text.startswith("begin") and text.endswith("end") and len(text) < LOG_BYTES + 100


def test_the_archive_stays_small_enough_to_come_back(run, monkeypatch):
    (run.folder("logs") / "noise.txt").write_bytes(os.urandom(LOG_BYTES))
    monkeypatch.setattr(gpu_run, "ARCHIVE_BYTES", LOG_BYTES // 10)
    run.pack()
    assert (run.out / "results.tar.gz").stat().st_size < LOG_BYTES // 10
    with tarfile.open(run.out / "results.tar.gz") as archive:
        assert len(archive.extractfile("logs/noise.txt").read()) > LOG_BYTES // 21


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_whole_files(run):
    """The child does nothing but write, so that a kill meets a write; without a second file most kills here left a part."""
    run.report("tests", "## Tests\n" + "line\n" * 2_000_000)
    gpu.summarise(run, "title")
    whole = (run.out / "summary.md").stat().st_size
    for turn in range(8):
        child = os.fork()
        if child == 0:
            while True:
                gpu.summarise(run, "title")
        time.sleep(0.1 + 0.013 * turn)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert (run.out / "summary.md").stat().st_size == whole
    (run.folder("logs") / "noise.txt").write_bytes(os.urandom(1000))
    run.pack()
    assert {path.name for path in run.out.iterdir()} <= {"summary.md", "summary.md.part", "results.tar.gz", "log.txt"}
    with tarfile.open(run.out / "results.tar.gz") as archive:
        assert len(archive.extractfile("logs/noise.txt").read()) == 1000


# --- what is left behind -----------------------------------------------------------------------------------------------------


def test_a_stage_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    def broken(run):
        raise OSError("no driver")

    def measured(run):
        run.results.mkdir()
        (run.results / "kept.json").write_text("{}")
        run.report("bench", "## Kept")

    monkeypatch.setitem(gpu.ACTIONS, "tests", broken)
    monkeypatch.setitem(gpu.ACTIONS, "bench", measured)
    assert gpu.main(["--out", str(tmp_path), "--stages", "tests", "bench"]) == 1
    summary = (tmp_path / "summary.md").read_text()
    assert "| tests | OSError: no driver |" in summary and "## Kept" in summary and "## Kept" in capsys.readouterr().out
    monkeypatch.setitem(gpu.ACTIONS, "device", lambda run: run.skip("device", "none"))
    assert gpu.main(["--out", str(tmp_path), "--stages", "device"]) == 0
    assert "## Kept" in (tmp_path / "summary.md").read_text(), "what an earlier command left counts"
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        assert "results/kept.json" in archive.getnames()
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "results.tar.gz", "summary.md"}


KILLED = """
import signal, sys, threading, time
from benchmarks.gpu import __main__ as gpu
def first(run):
    (run.folder("results") / "kept.txt").write_text("kept")
gpu.ACTIONS["device"] = first
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
gpu.ACTIONS["tune"] = lambda run: run.together([(f"sleep {k}", sleep) for k in range(5)], 60, 2)
if "elsewhere" in sys.argv:  # another thread gets the signal: what the main thread waits for is not interrupted
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
gpu.main(["--out", sys.argv[1], "--stages", "device", "tune"])
"""


def test_what_a_stage_has_so_far_is_packed_while_it_runs(tmp_path, monkeypatch):
    def long_stage(run):
        (run.folder("tests") / "lines.jsonl").write_text("so far")
        until = time.monotonic() + 20
        while not (tmp_path / "results.tar.gz").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert "**Not ended when this was written: tests.**" in (tmp_path / "summary.md").read_text()
        with tarfile.open(tmp_path / "results.tar.gz") as archive:
            run.skip("tests", archive.extractfile("tests/lines.jsonl").read().decode())

    monkeypatch.setattr(gpu, "PACK_S", 0.2)
    monkeypatch.setitem(gpu.ACTIONS, "tests", long_stage)
    assert gpu.main(["--out", str(tmp_path), "--stages", "tests"]) == 0
    assert "skipped: so far" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("thread", ["main", "elsewhere"])
def test_a_run_that_is_ended_from_outside_packs_what_it_has(tmp_path, thread):
    command = subprocess.Popen(python(KILLED, str(tmp_path), thread), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in command.stdout:
        if "time.sleep" in line:
            break
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=40)  # the processes would sleep for 60 s
    assert command.returncode == 128 + signal.SIGTERM
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        assert "results/kept.txt" in archive.getnames()
    assert (tmp_path / "summary.md").exists()


def test_the_screen_gets_a_fair_share_of_every_report():
    parts = ["a" * 100, "b" * 9000, "c" * 9000]
    shown = gpu.fit(parts, 6100)
    assert shown[0] == parts[0] and all(2900 < len(part) <= 3000 for part in shown[1:])
    assert gpu.fit(parts, 30_000) == parts and gpu.fit([], 10) == []


def test_wheels_are_installed_one_by_one(run, tmp_path, monkeypatch):
    folder = tmp_path / ".wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "whole-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("whole_module.py", "VALUE = 42\n")
        wheel.writestr("whole-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: whole\nVersion: 1.0\n")
        wheel.writestr("whole-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("whole-1.0.dist-info/RECORD", "")
    (folder / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    monkeypatch.setattr(gpu_build, "WHEELS", folder)
    gpu_build.wheels(run)
    assert [(step.name, step.ok) for step in sorted(run.steps, key=lambda s: s.name)] == [
        ("wheel broken-1.0-py3-none-any", False),
        ("wheel whole-1.0-py3-none-any", True),
    ]
    found = "import whole_module, importlib.metadata; print(whole_module.VALUE, importlib.metadata.version('whole'))"
    assert run.step("import", python(found), 20).output().strip() == "42 1.0"
    run.pack()
    with tarfile.open(run.out / "results.tar.gz") as archive:
        assert not any("whole_module" in name for name in archive.getnames())


def test_spills_are_counted():
    good = "ptxas info    : Used 40 registers, 8 bytes smem\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    bad = "    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads\nptxas info    : Used 255 registers\n"
    assert gpu_build.spills([good, bad]) == (2, 255, ["16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads"])


# --- tests and their report ---------------------------------------------------------------------------------------------------

SUITE = """
import sys
import pytest

def test_right():
    pass

def test_wrong():
    assert 1 + 1 == 3, "sums"

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

def test_that_loses_the_context():
    sys.lost = True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

@pytest.mark.parametrize("k", range(3))
def test_in_a_fresh_process(k):
    assert not hasattr(sys, "lost")

@pytest.mark.large
def test_large():
    assert False
"""


def test_a_lost_context_costs_one_test(run, tmp_path, monkeypatch):
    pytest.importorskip("xdist")
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = large: much memory\n")
    monkeypatch.setattr(gpu_tests, "GPU_TESTS", str(suite))
    monkeypatch.setattr(gpu_tests, "PROCESSES", 1)
    gpu_tests.tests(run)
    (step,) = run.steps
    assert step.state == "exit 1" and step.note == "4 passed, 2 failed, 1 skipped"
    text = (run.scratch / "reports" / "tests.md").read_text()
    assert "illegal memory access" in text and "1x test_suite.py:9 AssertionError: sums / assert (1 + 1) == 3" in text
    assert "not today" in text and "test_large" not in text


def test_what_ran_before_the_end_is_reported(run, tmp_path):
    suite, lines = tmp_path / "test_slow.py", tmp_path / "lines.jsonl"
    begun = tmp_path / "begun"
    slow = f"    pathlib.Path({str(begun)!r}).touch()\n    time.sleep(60)\n"
    suite.write_text(f"import pathlib, time\ndef test_a():\n    pass\ndef test_b():\n{slow}def test_c():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    process, _ = run.start("slow", gpu_tests.pytest_command(str(suite), lines, 0))
    until = time.monotonic() + 50
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.1)
    run.end(process)
    assert gpu_tests.counts(lines) == "1 passed, 2 not run"


def test_pytest_that_does_not_start_says_why(run, tmp_path, monkeypatch):
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setattr(gpu_tests, "GPU_TESTS", str(tmp_path / "test_broken.py"))
    monkeypatch.setattr(gpu_tests, "PROCESSES", 0)
    gpu_tests.tests(run)
    assert run.steps[0].bad and "no_such_module" in (run.scratch / "reports" / "tests.md").read_text()


def _lines(path, failures):
    with path.open("w") as lines:
        lines.write(json.dumps({"collected": len(failures) + 1}) + "\n")
        for name, place, message in failures:
            line = {"test": f"tests/gpu/test_x.py::{name}", "outcome": "failed", "when": "call", "seconds": 1.0}
            lines.write(json.dumps(line | {"place": place, "message": message}) + "\n")
    return path


def test_thirty_kinds_of_failures_fit_and_equal_ones_are_one(tmp_path):
    different = [
        (f"test_{k}[{'x' * 40}]", f"test_x.py:{k}", f"AssertionError: {chr(65 + k) * 200}\n{'y' * 300}") for k in range(30)
    ]
    same = [(f"test_same[{k}]", "compare.py:40", f"error is {k}.{k}e-3, over 1e-5") for k in range(100)]
    text = gpu_tests.failure_report("tests", _lines(tmp_path / "a.jsonl", different + same))
    assert len(text) < gpu_tests.REPORT_CHARS + 500
    assert "130 failed, 1 not run" in text and "- 100x compare.py:40 error is 0.0e-3" in text and "and 97 more" in text
    shown = text.count("\n- 1x ")
    assert shown >= 15 and f"- {30 - shown} further kinds of failures" in text


def test_the_sanitizers_findings_are_counted(run, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    said = [
        *["Invalid __global__ read of size 4 bytes", "    at fwd_kernel+0x1 in similarity.py:7"] * 3,
        "Error: Race reported between Write access at 0x10 and Read access at 0x20",
        "ERROR SUMMARY: 4 errors",
    ]
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '========= {line}'\n" for line in said) + "exit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "test_tiny.py").write_text("")
    monkeypatch.setattr(gpu_tests, "SANITIZED", str(tmp_path / "test_tiny.py"))
    asked = []
    monkeypatch.setattr(gpu_tests, "pytest_command", lambda *words: asked.append(words[3:]) or [sys.executable, "-c", "pass"])
    gpu_tests.sanitize(run)
    assert asked == [(), (), ("-m", "racecheck")], "without a tool, memcheck, racecheck"
    assert sorted((step.name, step.state) for step in run.steps) == [
        ("memcheck", "exit 1"),
        ("racecheck", "exit 1"),
        ("without sanitizer", "ok"),
    ]
    text = (run.scratch / "reports" / "sanitize.md").read_text()
    assert "- 3x Invalid __global__ read of size 4 bytes | at fwd_kernel" in text and "- 1x Error: Race reported" in text
    assert "ERROR SUMMARY: 4 errors" in text


def test_what_cannot_be_run_is_skipped_with_its_reason(run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gpu_tests, "GPU_TESTS", "tests/nowhere")
    gpu_tests.sanitize(run)
    gpu_profile.profile(run)
    gpu_tests.tests(run)
    run.device = "cpu"
    for stage in (gpu_tests.sanitize, gpu_profile.profile, gpu_tests.large, gpu_build.device):
        stage(run)
    assert all(step.state.startswith("skipped: ") and not step.bad for step in run.steps) and len(run.steps) == 7
    assert run.steps[1].state == "skipped: ncu is not installed" and run.steps[2].state == "skipped: there is no tests/nowhere"


# --- the other stages ---


def test_the_tuner_and_the_steps_get_a_folder_and_a_time(run, monkeypatch):
    commands = []

    def step(run, name, command, limit_s):
        commands.append((command, limit_s))
        (run.folder(name) / f"{name}.json").write_text("{}")
        return run.record(Step(name, "ok"))

    monkeypatch.setattr(Run, "step", step)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: True)
    gpu.run_stages(run, gpu_plan.slots(("tune", "steps")), "title")
    (tune, tune_s), (steps, steps_s) = commands
    assert tune[1:3] == ["-m", "benchmarks.tune"] and steps[1:3] == ["-m", "benchmarks.steps"]
    assert tune[tune.index("--out") + 1] == str(run.scratch / "tune") and float(tune[tune.index("--seconds") + 1]) < tune_s < 240
    assert steps[-2:] == ["--device", "cuda"] and steps_s > tune_s
    assert (run.out / "tune.json").exists() and (run.out / "steps.json").exists()
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    gpu._steps(run)
    assert run.steps[-1].state == "skipped: there is no benchmarks.steps"


def test_the_page_is_one_page_of_files_that_exist():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert len(page.splitlines()) <= 70
    assert all(f"--call {call}" in page for call in ("prepare", *gpu_plan.CALLS))
    assert all(re.search(rf"\b{stage}\b", page) for stage in gpu.STAGES)
    named = re.findall(r"`((?:fastssl|csrc|benchmarks|tests|docs|requirements)/[\w./-]+\.\w+)`", page)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
