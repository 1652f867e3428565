"""The masks' CUDA kernels' own source, compiled for the CPU, against the references: same bits.

The limits of test_updates.py hold here too.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastssl.ops.block_mask import _aspects
from fastssl.reference.block_mask import block_mask
from fastssl.reference.mask_tokens import mask_tokens

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here"), pytest.mark.usefixtures("one_thread")]
WORDS = 8192  # of shared memory, csrc/cuda/block_mask.h


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    out = tmp_path_factory.mktemp("cuda_on_cpu") / "masks.so"
    folder = ROOT / "tests" / "without_gpu" / "cuda_on_cpu"
    includes = [f"-I{path}" for path in (ROOT / "csrc", folder)]
    fma = ["-mfma"] if "fma" in Path("/proc/cpuinfo").read_text() else []
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-Wno-unknown-pragmas", *fma]
    subprocess.run(["g++", *flags, *includes, str(folder / "masks.cpp"), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def passed(values):
    """Tensors as addresses, numbers as 32 bits unless already wrapped."""
    return [ctypes.c_void_p(v.data_ptr()) if isinstance(v, torch.Tensor) else v for v in values]


# rows, height, width, least and most of a block, attempts, exact
BLOCKS = [
    (37, 14, 14, 4, None, 10, False),
    (37, 14, 14, 4, None, 10, True),
    (9, 16, 20, 16, 75, 3, True),
    (8, 8, 64, 5, 40, 10, False),
    (3, 5, 97, 3, None, 2, True),
    (20, 1, 1, 1, None, 1, True),
    (2, 33, 512, 400, 900, 5, False),
]


@pytest.mark.parametrize("rows, height, width, low, high, attempts, exact", BLOCKS)
def test_block_mask(kernels, rows, height, width, low, high, attempts, exact):
    high = 2**31 - 1 if high is None else high
    goals = torch.randint(0, height * width + 1, (rows,))
    seed, aspects = torch.tensor(-12345678901), _aspects(0.3, 1 / 0.3, goals.device)
    expected = block_mask(goals, seed, aspects, rows, height, width, low, high, attempts, exact)
    most = WORDS // (height * ((width + 31) // 32))
    for samples in {min(8, most), min(3, most), 1}:
        mask = torch.full((rows + 1, height, width), 2, dtype=torch.uint8)
        kernels.block_mask(*passed([
            goals, seed, aspects, mask, ctypes.c_int64(rows), len(aspects), height, width, low, high, attempts, exact, samples
        ]))  # fmt: skip
        assert torch.equal(mask[:rows], expected.to(torch.uint8)) and (mask[rows] == 2).all()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("rows, length", [(1, 1), (3, 4), (70, 33), (5, 512), (2, 1027)])
def test_mask_tokens(kernels, rows, length, with_special, blocks):
    ids, seed = torch.randint(0, 2**62, (rows, length)), torch.tensor(2**62 + 3)
    special = torch.rand(rows, length) < 0.3 if with_special else None
    rule = 103, 2**32 - 1, 900_000_000, 2**31, 3 * 2**30, -100
    inputs, labels = (torch.full((rows * length + 1,), 55) for _ in range(2))
    numbers = [ctypes.c_int64(n) for n in (rows, length, *rule)]
    kernels.mask_tokens(*passed([ids, special, seed, inputs, labels, *numbers, blocks]))
    for ours, theirs in zip((inputs, labels), mask_tokens(ids, special, seed, *rule), strict=True):
        assert torch.equal(ours[:-1].reshape(rows, length), theirs) and ours[-1] == 55
