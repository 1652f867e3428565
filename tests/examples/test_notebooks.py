"""The notebooks of the examples: they are kept without outputs, and nbmake runs one of them on two days of ten."""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.rotation import of_today

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
NEEDS = ("nbmake", "ipykernel", "lightning", "matplotlib", "sklearn")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_clean(name):
    notebook = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code) and len(code) > 4
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert f"notebooks/{name}" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(any(find_spec(name) is None for name in NEEDS), reason=f"needs {', '.join(NEEDS)}")
@pytest.mark.parametrize("name", of_today(NOTEBOOKS, 10))
def test_a_notebook_runs(name, tmp_path):
    """In a kernel of its own, with the fastssl of this folder."""
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=900", "--noconftest", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run([*command, FOLDER / name], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
