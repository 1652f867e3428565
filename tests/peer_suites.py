"""Other libraries' own test suites, once as they are and once with ``fastssl.patch``. Not part of CI: it wants their checkouts.

    python -m tests.peer_suites lightly CHECKOUT tests/loss tests/models

runs pytest twice in CHECKOUT with these arguments. It prints how many tests pass unmodified, how many of these pass patched, how
many of these ran code of fastssl, and the names of those that no longer pass. A package in CHECKOUT itself is the one tested;
otherwise it is the installed one, or the first on PYTHONPATH. docs/compat.md has the counts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = str(ROOT / "fastssl")


class Plugin:
    """Outcome of each test by its name, and whether a function of fastssl ran in it."""

    def __init__(self, library: str, patched: bool, out: str):
        self.out, self.results, self.entered = out, {}, False
        from benchmarks.peers import ready_torchvision

        ready_torchvision()
        if patched:
            import fastssl

            self.patch = fastssl.patch(library)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.results[report.nodeid] = [report.outcome, self.entered]

    def pytest_runtest_setup(self, item) -> None:
        self.entered = False
        sys.setprofile(self._look)

    def pytest_runtest_teardown(self, item) -> None:
        sys.setprofile(None)

    def _look(self, frame, event, _) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE) and not frame.f_code.co_filename.endswith("patch.py"):
            self.entered = True
            sys.setprofile(None)

    def pytest_sessionfinish(self) -> None:
        Path(self.out).write_text(json.dumps(self.results))


def run(library: str, checkout: str, arguments: list[str], patched: bool) -> dict[str, tuple[str, bool]]:
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/results.json"
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--child", library, str(patched), out, *arguments]
        subprocess.run(command, cwd=checkout, env=environment, stdout=sys.stderr, check=False)
        return json.loads(Path(out).read_text())


def child(library: str, patched: str, out: str, *arguments: str) -> int:
    import pytest

    sys.path[0] = os.getcwd()  # theirs: in place of this file's folder
    return pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[Plugin(library, patched == "True", out)])


def main(library: str, checkout: str, *arguments: str) -> None:
    before, after = (run(library, checkout, list(arguments), patched) for patched in (False, True))
    passing = [name for name, (outcome, _) in before.items() if outcome == "passed"]
    still = [name for name in passing if after.get(name, ("absent", False))[0] == "passed"]
    print(f"{library}: {len(passing)} of {len(before)} pass unmodified, {len(still)} of these with fastssl,", end=" ")
    print(f"{sum(after.get(name, ('', False))[1] for name in passing)} of these ran code of fastssl")
    for name in passing:
        if name not in still:
            print(f"  {after.get(name, ('absent',))[0]}: {name}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1] == "--child":
        sys.exit(child(*sys.argv[2:]))
    main(*sys.argv[1:])
