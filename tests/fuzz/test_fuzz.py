"""A slice of ``python -m tests.fuzz``, and that its judge sees what is wrong."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastssl import functional, masking, momentum
from tests.fuzz import guided
from tests.fuzz.cases import CASES
from tests.fuzz.judge import judge
from tests.fuzz.run import fuzz
from tests.fuzz.table import Case

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]
ROOT = Path(__file__).resolve().parents[2]


def _make(m):
    return {"x": m.leaf(3, 4), "factor": 2.0, "out": m.rows(3, 4)}


def _truth(x, factor, out):
    return x * factor


def _check(x, factor, out):
    if not isinstance(factor, float) or not abs(factor) < 1e30:
        raise ValueError(f"double: factor must be a finite float, got {factor!r}")
    plain = all(type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout == torch.strided for t in (x, out))
    if not plain or x.is_nested or x.is_meta or not x.is_floating_point() or x.numel() == 0 or not x.isfinite().all():
        raise ValueError("double: x and out must be plain tensors")


def double(x, factor, out):
    _check(x, factor, out)
    return x * factor


def unchecked(x, factor, out):
    return x * factor + 0.0 * out.sum().detach()


def moving(x, factor, out):
    _check(x, factor, out)
    out.add_(1)
    return x * factor


def wrong(x, factor, out):
    _check(x, factor, out)
    return x.detach() * factor + 1e-3 + 0 * x


def constant(x, factor, out):
    _check(x, factor, out)
    return x.detach() * factor + 0.5 * x - 0.5 * x.detach()


calls = []


def restless(x, factor, out):
    _check(x, factor, out)
    calls.append(1)
    return x * factor + len(calls)


def anonymous(x, factor, out):
    if not isinstance(factor, float):
        raise ValueError("bad")
    return double(x, factor, out)


def host(x, factor, out):
    _check(x, factor, out)
    return x * factor if x.detach().flatten()[0].item() > 0 else x * factor + 0


def kinds(function, wanted: str = "", count: int = 60) -> set[str]:
    """Of the faults of ``count`` calls, or of those up to the first one of the kind ``wanted``."""
    case, found = Case("double", function, _make, _truth), set()
    for number in range(count):
        found |= {kind for kind, _ in judge(case, 0, number).faults}
        if wanted in found:
            break
    return found


def test_a_right_function_has_no_fault():
    assert kinds(double) <= {"refused", "fake"}  # its own check reads values


@pytest.mark.parametrize(
    "function, kind",
    [
        (unchecked, "exception"),
        (moving, "changed"),
        (wrong, "wrong"),
        (constant, "wrong"),
        (restless, "twice"),
        (anonymous, "words"),
        (host, "fake"),
    ],
)
def test_a_fault_is_seen(function, kind):
    assert kind in kinds(function, kind)


def test_a_call_that_kills_the_process_costs_itself_alone():
    def deadly(x, factor, out):
        if not isinstance(factor, float):
            os.kill(os.getpid(), signal.SIGKILL)
        return double(x, factor, out)

    report = fuzz(Case("double", deadly, _make), [(0, number) for number in range(30)])
    crashes = [fault for fault in report.faults if fault[2] == "crash"]
    assert crashes and all("signal 9" in fault[3] for fault in crashes)
    assert report.counts["served"] + report.counts["refused"] + len(crashes) == 30


def test_bytes_choose_a_call():
    data = random.Random(4)
    verdicts = [guided.judged(guided.NAMES, data.randbytes(120))[1] for _ in range(12)]
    assert {verdict.kind for verdict in verdicts} == {"served", "refused"}
    assert not [fault for verdict in verdicts for fault in verdict.faults]


@pytest.mark.parametrize("function, kind", [(unchecked, "exception"), (wrong, "wrong")])
def test_a_fault_is_seen_in_calls_of_bytes(function, kind):
    case, data = Case("double", function, _make, _truth), random.Random(4)
    assert any(kind in (found for found, _ in judge(case, data.randbytes(60), 1).faults) for _ in range(60))


def test_every_public_function_has_a_case():
    names = {case.name for case in CASES}
    for module in (functional, masking, momentum):
        public = {name for name in module.__all__ if not isinstance(getattr(module, name), type)}
        assert public <= names, public - names


def test_public_functions_serve_or_refuse():
    command = [sys.executable, "-m", "tests.fuzz", "--seeds", "1", "--calls", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
