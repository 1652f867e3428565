"""Fresh environments: one for each form, Python and torch, in which the tests' core runs without the sources."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .build import ROOT, run

#: What is installed, and what the environment of the installing command adds.
FORMS = {
    "wheel": {},
    "pure": {},
    "sdist-plain": {"CXX": "/nonexistent/c++"},
    "sdist": {},
}
#: Of tests/test_ops.py, which knows every operation and loss: values and gradients in float32, and inference.
CHOSEN = "on_every_isa or no_grad"
SUPPORT = tuple(f"support/{name}.py" for name in ("rotation", "saved_tensors", "shared_folders"))
CORE = ("__init__.py", "conftest.py", "test_ops.py", *SUPPORT)


@dataclass(frozen=True)
class Case:
    """One form beside one Python (``"3.12"``) and one torch (``"2.11.0"``, or ``"newest"``)."""

    form: str
    python: str
    torch: str


def interpreter_runs(python: str) -> bool:
    """Whether ``python3.12`` is on PATH and starts. That of a version manager may be there and refuse to start."""
    try:
        return subprocess.run([f"python{python}", "--version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def uv(*words: str | Path, **env: str) -> None:
    run(sys.executable, "-m", "uv", *words, **env)


def environment(case: Case, folder: Path) -> Path:
    """A new environment with torch and pytest; returns its interpreter."""
    uv("venv", "-q", "--clear", "--python", f"python{case.python}", folder)
    torch = "torch>=2.11" if case.torch == "newest" else f"torch=={case.torch}"
    uv("pip", "install", "-q", "--python", folder / "bin" / "python", torch, "numpy", "pytest")
    return folder / "bin" / "python"


def artifact(case: Case, out: Path) -> Path:
    """What ``build`` left in ``out`` for the form."""
    pattern = {"wheel": "fastssl-*manylinux*.whl", "pure": "fastssl-*-none-any.whl"}.get(case.form, "fastssl-*.tar.gz")
    found = sorted(out.glob(pattern))
    if not found:
        raise SystemExit(f"{out} holds no {pattern}: make dist")
    return found[-1]


def install(case: Case, python: Path, made: Path) -> None:
    """As a user does. A build of the sources takes setuptools and ninja from the environment, as it takes torch."""
    words: tuple[str | Path, ...] = ("pip", "install", "-q", "--python", python)
    if made.suffix == ".gz":
        uv(*words, "setuptools>=77", "ninja")
        words = (*words, "--no-build-isolation", "--no-cache")
    uv(*words, made, **FORMS[case.form])


def lay_out(folder: Path) -> None:
    """The tests' core, and nothing of the sources."""
    for name in CORE:
        (folder / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    shutil.copy(ROOT / "tests" / "dist" / "installed.py", folder / "tests" / "test_installed.py")


def test(case: Case, python: Path, folder: Path) -> str:
    """Runs the core in ``folder``; returns pytest's last line, such as ``5 passed in 1.00s``."""
    lay_out(folder)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("FASTSSL_", "PYTHON", "PYTEST"))}
    options = ("-q", "--import-mode=importlib", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", str(folder))
    chosen = ("-k", f"test_installed or {CHOSEN}", "tests")
    done = subprocess.run(
        [str(python), "-m", "pytest", *options, *chosen],
        cwd=folder,
        env=plain | {"FASTSSL_FORM": case.form, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    (folder / "pytest.txt").write_text(done.stdout + done.stderr)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[-1] if lines else f"pytest ended with status {done.returncode}"


def torch_version(python: Path) -> str:
    """The torch that was installed, such as ``2.15.0+cu130``."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def counts(line: str) -> dict[str, int]:
    """``"1 failed, 5 passed in 1.00s"`` -> ``{"failed": 1, "passed": 5}``"""
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", line)}


def cases(forms: list[str], pythons: list[str], torches: list[str]) -> Iterator[Case]:
    """Every combination of which the interpreter is here; says which one is not."""
    for python in pythons:
        if not interpreter_runs(python):
            print(f"python{python} does not start here: left out", flush=True)
            continue
        yield from (Case(form, python, torch) for torch in torches for form in forms)


def check(case: Case, out: Path, folder: Path) -> tuple[str, dict[str, int]]:
    """Installs one case into a new environment below ``folder`` and tests it there. Returns torch's version, and pytest's counts.

    The environment is removed where everything passed.
    """
    name = f"{case.form}-{case.python}-{case.torch}"
    shutil.rmtree(folder / name, ignore_errors=True)
    python = environment(case, folder / name / "environment")
    install(case, python, artifact(case, out))
    version = torch_version(python)
    line = test(case, python, folder / name / "empty")
    found = counts(line)
    if set(found) <= {"passed", "skipped"} and found.get("passed"):
        shutil.rmtree(folder / name)
    else:
        print(f"{line}; see {folder / name / 'empty' / 'pytest.txt'}", flush=True)
    return version, found
