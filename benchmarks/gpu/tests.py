"""Stages of a GPU run that ask whether the kernels are right: the tests, those that need much memory, and compute-sanitizer.

Imports ``run``.
"""

import importlib.util
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.run import ROOT, Run, Step, python, read_lines

GPU_TESTS, SANITIZED = "tests/gpu", "tests/gpu/test_sanitized.py"
#: What a rehearsal runs instead: the small tests of the sanitizer, on a CPU that stands in for the GPU.
REHEARSAL = "tests/gpu/rehearse.py"
#: Test processes side by side on one GPU; one thread each, since they share the cores.
PROCESSES, ONE_THREAD = 14, {"OMP_NUM_THREADS": "1"}
#: pytest's exit status where no test was collected.
NO_TESTS = 5
#: Tests that a call of the plan leaves out: the kernels treat the precision "medium" as "high", as TF32.
LEFT_OUT = "not medium"
#: Processes that may be lost and replaced.
RESTARTS = 60
#: Seconds after which one test is given up.
TEST_LIMIT_S = 150
#: Without torch's caching allocator every tensor has a border that memcheck watches.
SANITIZER_ENV = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **ONE_THREAD}
#: Tools, and which tests: racecheck does not understand how Triton's tiles are ordered.
SANITIZERS = {"memcheck": (), "racecheck": ("-m", "racecheck")}
#: Characters of the report of one stage on the screen, and of one failure.
REPORT_CHARS, _MESSAGE_CHARS, _NAMES = 7500, 260, 3


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def pytest_command(target: str, lines: Path, processes: int, *words: str, script: str = "") -> list[str]:
    """The command of pytest, or of a ``script`` that starts it; with xdist (``processes`` > 0) and a limit for each test."""
    command = [sys.executable, script] if script else python("pytest")
    command += [target, "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.pytest_report", *words]
    command += ["--report-lines", str(lines), "--tb=short"]
    if processes and _installed("xdist"):
        command += ["-n", str(processes), "--dist", "worksteal", "--max-worker-restart", str(RESTARTS)]
    if _installed("pytest_timeout"):
        command += ["--timeout", str(TEST_LIMIT_S), "--timeout-method", "thread"]
    return command


def _read(lines: Path) -> tuple[int, dict[str, list[dict]]]:
    """(number of tests collected, outcome -> its lines). A test counts once, by its worst outcome, with that of its teardown."""
    found = read_lines(lines)
    collected = max((line["collected"] for line in found if "collected" in line), default=0)
    worst = {"passed": 0, "skipped": 1, "failed": 2}
    by_test: dict[str, dict] = {}
    for line in found:
        name = line.get("test")
        if name and (name not in by_test or worst[line["outcome"]] > worst[by_test[name]["outcome"]]):
            by_test[name] = line
    by_outcome: dict[str, list[dict]] = defaultdict(list)
    for line in by_test.values():
        by_outcome[line["outcome"]].append(line)
    return collected, by_outcome


def _first_lines(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " / ".join(lines[:3])[:_MESSAGE_CHARS]


def _grouped(lines: list[dict]) -> list[str]:
    """One paragraph for each place and message, the most frequent first; messages that differ only in numbers count as one."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for line in lines:
        kind = re.sub(r"[\d.e+-]*\d", "#", _first_lines(line["message"]))[:90]
        groups[line["place"], kind].append(line)
    texts = []
    for same in sorted(groups.values(), key=len, reverse=True):
        names = [line["test"].partition("::")[2] or line["test"] for line in same[:_NAMES]]
        more = f" and {len(same) - _NAMES} more" if len(same) > _NAMES else ""
        texts.append(f"- {len(same)}x {same[0]['place']} {_first_lines(same[0]['message'])}\n  {', '.join(names)}{more}")
    return texts


def counts(lines: Path) -> str:
    """Such as "410 passed, 3 failed, 2 skipped, 5 not run"."""
    _, found = _read(lines)
    parts = [f"{len(found[outcome])} {outcome}" for outcome in ("passed", "failed", "skipped") if found[outcome]]
    missing = not_run(lines)
    return ", ".join([*parts, *([f"{missing} not run"] if missing else [])]) or "no test ran"


def not_run(lines: Path) -> int:
    collected, found = _read(lines)
    return max(0, collected - sum(map(len, found.values())))


def failure_report(title: str, lines: Path, most: int = REPORT_CHARS) -> str:
    """Counts, reasons of skipped tests, the slowest tests, then failures by place; about ``most`` characters at most."""
    _, found = _read(lines)
    slow = sorted((line for kind in found.values() for line in kind if line["seconds"] >= 1), key=lambda line: -line["seconds"])[:5]
    parts = [f"## {title}: {counts(lines)}"]
    parts += ["Skipped:", *_grouped(found["skipped"])] if found["skipped"] else []
    slow = [f"{line['test'].rpartition('/')[2]} {line['seconds']:.0f} s" for line in slow]
    parts += [f"Slowest: {', '.join(slow)}"] if slow else []
    groups = _grouped(found["failed"])
    for done, text in enumerate(groups):
        if sum(map(len, parts)) + len(text) > most:
            parts.append(f"- {len(groups) - done} further kinds of failures, see the log")
            break
        parts.append(text)
    return "\n".join(parts)


def _run_tests(run: Run, stage: str, command_of: Callable, limit_s: float, env: dict[str, str]) -> tuple[Step, str]:
    """Runs the tests of one stage; returns the step and its report. ``command_of(lines)`` is the command that writes that file."""
    lines = run.folder("tests") / f"{stage.replace(' ', '_')}.jsonl"
    lines.unlink(missing_ok=True)
    step = run.step(stage, command_of(lines), limit_s, env)
    step.note = counts(lines)
    if missing := not_run(lines):
        run.drop(f"{missing} tests of {stage}", step.state)
    text = failure_report(stage, lines)
    if step.note == "no test ran":  # pytest itself failed: a wrong option, an error while collecting
        text += "\n\n```\n" + step.output()[-2000:] + "\n```"
    return step, text


def _missing(run: Run, stage: str, *paths: str) -> bool:
    """Records why the stage cannot run, if so."""
    reason = next((f"there is no {path}" for path in paths if not (ROOT / path).exists()), "")
    reason = reason or ("" if _installed("pytest") else "pytest is not installed")
    if reason:
        run.skip(stage, reason)
    return bool(reason)


def tests(run: Run) -> None:
    """Runs all but the large tests, with many processes on one GPU; a rehearsal runs the sanitizer's tests on the CPU."""
    if run.device == "cuda":
        words = ("-m", "not large", *(("-k", LEFT_OUT) if run.short else ()))
        needed, command = (GPU_TESTS,), lambda lines: pytest_command(GPU_TESTS, lines, PROCESSES, *words)
    else:
        needed, command = (SANITIZED, REHEARSAL), lambda lines: pytest_command(SANITIZED, lines, 0, script=REHEARSAL)
    if not _missing(run, "tests", *needed):
        _, text = _run_tests(run, "tests", command, run.stage_s(), ONE_THREAD)
        run.report("tests", text)


def large(run: Run) -> None:
    """Runs the tests that need many gigabytes, one after another, in one process that is replaced if it is lost."""
    if run.device != "cuda":
        run.skip("large", "needs a GPU")
    elif not _missing(run, "large", GPU_TESTS):
        command = lambda lines: pytest_command(GPU_TESTS, lines, 1, "-m", "large")  # noqa: E731
        step, text = _run_tests(run, "large", command, run.stage_s(), {})
        if step.state == f"exit {NO_TESTS}":
            step.state = "skipped: no test is marked large"
        run.report("large", text)


def sanitizer_findings(text: str, most: int = 6) -> str:
    """The errors that compute-sanitizer found, grouped by error and kernel, and its last summary."""
    lines = [line.lstrip("= ").strip() for line in text.splitlines() if line.startswith("=========")]
    kinds: dict[str, int] = defaultdict(int)
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"(Invalid|Error:|Warning:|Race|Uninitialized|Misaligned|Out-of-range|Program hit)", line):
            kinds[f"{line[:160]} | {after[:160]}"] += 1
    summary = [line for line in lines if "SUMMARY" in line]
    shown = [f"- {count}x {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])[:most]]
    shown += [f"- {len(kinds) - most} further kinds, see the log"] if len(kinds) > most else []
    return "\n".join([*shown, *(summary[-1:] or ["no summary of the sanitizer: it did not end"])])


def sanitize(run: Run) -> None:
    """Runs memcheck and racecheck side by side, on small tests of every kernel."""
    tool = shutil.which("compute-sanitizer")
    reason = "needs a GPU" if run.device != "cuda" else "" if tool else "compute-sanitizer is not installed"
    if reason:
        run.skip("sanitize", reason)
        return
    if _missing(run, "sanitize", SANITIZED):
        return
    until = time.monotonic() + run.stage_s()
    # Without the sanitizer first: it fills Triton's cache, so that no compiler runs under the sanitizer.
    plain = lambda lines: pytest_command(SANITIZED, lines, PROCESSES)  # noqa: E731
    step, text = _run_tests(run, "without sanitizer", plain, (until - time.monotonic()) / 3, ONE_THREAD)
    folder, jobs = run.folder("tests"), []
    for check, words in SANITIZERS.items():
        lines = folder / f"{check}.jsonl"
        lines.unlink(missing_ok=True)
        jobs.append((check, [tool, "--tool", check, "--error-exitcode", "1", *pytest_command(SANITIZED, lines, 0, *words)]))
    parts = [text] if step.bad else []
    for step in run.together(jobs, until - time.monotonic(), len(jobs), SANITIZER_ENV):
        lines = folder / f"{step.name}.jsonl"
        step.note = counts(lines)
        parts += [failure_report(step.name, lines, REPORT_CHARS // 4), sanitizer_findings(step.output())]
    run.report("sanitize", "\n\n".join(parts))
