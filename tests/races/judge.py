"""A pytest plugin (``-p tests.races.judge``): every Triton launch of the run is executed by ttsem on CPU tensors, from the TTIR
that Triton makes of it for sm_90.

A test fails, with the kernel's line in its message, where a program touches memory outside the tensors it was given, where two
programs of a launch touch the same element and one of them writes it, where the lanes of one store disagree, and where ttsem cannot
judge a launch. The run fails too if a launch was too large for the search for races and, with ``--every-access``, if some
``tl.load`` or ``tl.store`` in ``fastssl/kernels`` moved no element in any judged launch.
"""

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ttsem import harness, mlir, ops, sanitize

from fastssl import kernels

KERNELS = Path(kernels.__file__).parent
ARCH = 90  # what ttsem is tested with; the TTIR of another architecture differs in nothing that these kernels use
PLACE = re.compile(r'"([^"]+)":(\d+):\d+')

launched: Counter[str] = Counter()  # "file.py: kernel" -> number of judged launches
shared: Counter[str] = Counter()  # the same for launches of several programs, between which there can be a race
touched: set[str] = set()  # "file.py:line" of each load and store that moved an element
_texts: dict[tuple, str] = {}


def accesses() -> dict[str, str]:
    """ "file.py:line" -> the text of that line, for each ``tl.load``, ``tl.store`` and ``tl.atomic_add`` of the kernels."""
    found = {}
    for path in sorted(KERNELS.rglob("*.py")):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.load", "tl.store", "tl.atomic_add"):
                found[f"{path.name}:{node.lineno}"] = lines[node.lineno - 1].strip()
    return found


def ttir(record, stage: str, target, *_) -> str:
    """The text that ttsem executes. ttsem's own function would first compile each kernel down to machine code."""
    key = record.fn, str(harness._specialize(record.fn, record.args, record.kwargs, target))
    if key not in _texts:
        _texts[key] = mlir.to_generic(harness._stage_text(record, stage, target), None)
    return _texts[key]


def execute(record, text: str, **options):
    """``harness.execute``, which also notes what was judged of fastssl's own kernels, but not of those with a planted fault."""
    done = _execute(record, text, **options | {"trace_access": True})
    source = Path(record.fn.fn.__code__.co_filename)
    if done.failure is None and KERNELS in source.parents:
        name = f"{source.name}: {record.fn_name}"
        launched[name] += 1
        shared[name] += int(np.prod(record.grid)) > 1
        for operation in {entry[2] for entry in done.memory.access_log or ()}:
            place = PLACE.search(operation, operation.rfind(" loc("))
            if place and KERNELS in Path(place[1]).parents:
                touched.add(f"{Path(place[1]).name}:{place[2]}")
    return done


_execute = harness.execute


def teach() -> None:
    """Adds what ttsem 0.1.0 lacks for these kernels: the fast division, which is the only libdevice function that they call, and,
    in messages, the line of a function that a kernel calls."""
    ops._EXTERN["__nv_fast_fdividef"] = (2, np.divide)
    sanitize._LOC = re.compile(r'loc\((?:callsite\()?(?:"[^"]*"\()?"([^"]+)":(\d+):\d+')


def install() -> None:
    """Makes ttsem parse each text only once and note what it judged."""
    mlir.enable_generic_printing()
    mlir.parse = functools.cache(mlir.parse)
    harness.ir_for_launch, harness.execute = ttir, execute


def _judges(config) -> bool:
    """Whether this process runs tests itself and does not only hand them out to others."""
    return hasattr(config, "workerinput") or not config.getoption("numprocesses", None)


def pytest_addoption(parser):
    parser.addoption("--every-access", action="store_true", help="fail if a load or store of a kernel was not judged")


def pytest_configure(config):
    if _judges(config):
        teach()
        install()
        config.session_of_ttsem = sanitize.session(ARCH, "<pytest>", cuda_is_cpu=False)
        config.judged = config.session_of_ttsem.__enter__()


def pytest_unconfigure(config):
    if _judges(config):
        config.session_of_ttsem.__exit__(None, None, None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if _judges(config):
        results = {"launched": dict(launched), "shared": dict(shared), "touched": sorted(touched)}
        results["unchecked"] = config.judged.races_unchecked
        if hasattr(config, "workerinput"):
            config.workeroutput["races"] = results
            return
        config.races = [results]
    verdict = _verdict(config)
    session.exitstatus = exitstatus or verdict


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.races = [*getattr(node.config, "races", []), *filter(None, [getattr(node, "workeroutput", {}).get("races")])]


def _verdict(config) -> int:
    """1 if the run was not judged as it should be, otherwise 0; what is wrong goes into the summary."""
    found = getattr(config, "races", [])
    counts = [sum((Counter(r[key]) for r in found), Counter()) for key in ("launched", "shared")]
    config.lines = [f"  {name}: {counts[0][name]} launches, {counts[1][name]} of several programs" for name in sorted(counts[0])]
    wrong = [f"{n} launches were too large for the search for races" for n in [sum(r["unchecked"] for r in found)] if n]
    if config.getoption("every_access"):
        seen = {place for r in found for place in r["touched"]}
        every = accesses()
        missing = [f"not judged: {place}: {text}" for place, text in every.items() if place not in seen]
        config.lines.append(f"  {len(every) - len(missing)} of {len(every)} loads and stores of fastssl/kernels moved elements")
        wrong += missing
    config.lines += wrong
    return 1 if wrong else 0


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line("Kernels judged by ttsem:")
    for line in getattr(config, "lines", []):
        terminalreporter.write_line(line)
