"""A pytest plugin for tests on a GPU: what has happened so far is on disk, and a lost device context costs one test.

    pytest -p benchmarks.gpu.pytest_report --report-lines FILE ...

FILE gets a line of JSON for each test as it ends (with xdist, from the controller), so a run that is stopped at its limit has
written down what it found. After an error that leaves the CUDA context unusable, a worker of xdist ends itself and another takes
its place; otherwise every later test of the process would fail with the same message. Cached device memory is handed back after
each test. Imports nothing of ``benchmarks``.
"""

import json
import os
import sys

import pytest

#: Messages of CUDA errors after which every later call of the process fails too.
STICKY = (
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert",
    "illegal instruction",
    "invalid address space",
    "hardware stack error",
    "launch timed out",
)
_MESSAGE = 400


def is_sticky(text: str) -> bool:
    return any(words in text for words in STICKY)


def pytest_addoption(parser):
    parser.addoption("--report-lines", metavar="FILE", help="append a line of JSON for each test that ended")


def pytest_configure(config):
    config.pluginmanager.register(_Plugin(config), "fastssl-report")


def _place_and_message(report) -> tuple[str, str]:
    """("file.py:12", the error) of a failed test, the reason of a skipped one."""
    if report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        return f"{os.path.basename(path)}:{line}", reason.removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return f"{os.path.basename(crash.path)}:{crash.lineno}", crash.message
    return "", str(report.longrepr or "")


class _Plugin:
    def __init__(self, config):
        self.worker = hasattr(config, "workerinput")
        self.path = None if self.worker else config.getoption("--report-lines")
        self.lost = False

    def pytest_runtest_logreport(self, report):
        if self.worker:
            self.lost |= report.failed and is_sticky(str(report.longrepr))
        if self.path is None or (report.passed and report.when != "call"):
            return
        place, message = ("", "") if report.passed else _place_and_message(report)
        line = {"test": report.nodeid, "outcome": report.outcome, "when": report.when, "seconds": round(report.duration, 2)}
        with open(self.path, "a") as lines:
            lines.write(json.dumps(line | {"place": place, "message": message[:_MESSAGE]}) + "\n")

    def pytest_collection_finish(self, session):
        if self.path is not None and session.items:
            self._count(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        if self.path is not None and node.gateway.id == "gw0":
            self._count(len(ids))

    def _count(self, tests: int) -> None:
        with open(self.path, "a") as lines:
            lines.write(json.dumps({"collected": tests}) + "\n")

    def pytest_runtest_logfinish(self):
        if self.lost:
            os._exit(1)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
