"""The tables of tensors that CUDA kernels walk (csrc/cuda/tables.cpp) on a runtime that knows what is over when, and does no work.

A table may be overwritten when every kernel that reads it is over, on whatever stream it was launched.
"""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
TABLES = 16  # that are kept


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables") / "tables.so"
    folder, torch_folder = ROOT / "tests" / "without_gpu" / "cuda_on_cpu", Path(torch.__file__).parent
    includes = [folder / "runtime", ROOT / "csrc", torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    flags = ["-O0", "-std=c++20", "-shared", "-fPIC", "-fno-gnu-unique", "-Wl,-Bsymbolic", "-DUSE_CUDA"]
    links = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    sources = ["-DTORCH_TARGET_VERSION=0x020b000000000000", *(f"-I{path}" for path in includes), str(folder / "tables.cpp")]
    subprocess.run(["g++", *flags, *sources, "-o", str(out), *links], check=True)
    return out


@pytest.fixture
def tables(built, tmp_path):
    """A library of its own for each test: its tables and streams are new."""
    library = ctypes.CDLL(shutil.copy(built, tmp_path))
    library.first_fault.restype = ctypes.c_char_p
    return library


def fault(tables) -> str:
    return tables.first_fault().decode()


def test_a_table_that_two_streams_used_is_overwritten_after_both(tables):
    """Stream 1 used it last, and is waited for; stream 0 may be busy with it still."""
    tables.use(0, 0, 3, False)
    tables.use(1, 0, 3, False)
    for other in range(1, TABLES + 1):
        tables.use(2, other, 3, False)
    assert tables.tables() == TABLES and fault(tables) == ""


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_lists_and_streams(tables, seed, graphs):
    """Lists longer than the table that they take over; with graphs some calls are captured, whose tables stay for ever."""
    draw = random.Random(seed)
    for _ in range(400):
        captured = graphs and draw.random() < 0.05
        which = draw.randrange(TABLES + 6)
        tables.use(draw.randrange(3), which, 1 + which * draw.randrange(1, 3), captured)
        assert fault(tables) == ""
    assert tables.tables() >= TABLES
