"""The optimizers' CUDA kernels' own source, compiled for the CPU, against the C++ kernels: same bits.

The limits of test_updates.py hold here too.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastssl.ops._register import OWNERS
from fastssl.ops.adamw import adamw_
from fastssl.ops.lars import FORMS, lars_

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here"),
    pytest.mark.skipif(OWNERS["lars_"]["CPU"] != "C++", reason="the C++ kernels are not built here"),
]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3, None: 4}
CHUNK = 8192
SIZES = (1, 3, 1000, CHUNK, CHUNK + 4, 3 * CHUNK + 13, 0, 4097)
DECAYS = [0.0, 0.1, 1e-6, 0.5, 0.05, 1e-4, 0.3, 0.0]  # one for each size
F32, B16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
# dtypes of the parameters, gradients, state, ema, shadow, ema_shadow
COMBINATIONS = [
    (F32, F32, F32, None, None, None),
    (F32, F32, F32, F32, None, None),
    (F32, B16, F32, F32, B16, F16),
    (B16, F32, F16, None, F32, None),
    (F16, F16, F32, B16, None, B16),
    (F64, F64, F64, F64, F64, F64),
]
RULES = [("moco_v3", True, False), ("larc", False, True), ("larc", True, False), ("paper", False, False)]


class Step(ctypes.Structure):
    _fields_ = [
        ("lists", ctypes.c_int),
        ("tensors", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("dtype", ctypes.POINTER(ctypes.c_int)),
        ("count", ctypes.POINTER(ctypes.c_int64)),
        ("weight_decay", ctypes.POINTER(ctypes.c_double)),
        ("lr", ctypes.c_double),
        ("ema_momentum", ctypes.c_double),
        ("lr_on_device", ctypes.POINTER(ctypes.c_double)),
        ("averages", ctypes.c_bool),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    out = tmp_path_factory.mktemp("cuda_on_cpu") / "optimizers.so"
    folder = ROOT / "tests" / "without_gpu" / "cuda_on_cpu"
    includes = [f"-I{path}" for path in (ROOT / "csrc", folder)]
    fma = ["-mfma"] if "fma" in Path("/proc/cpuinfo").read_text() else []
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas", *fma]
    subprocess.run(["g++", *flags, *includes, str(folder / "optimizers.cpp"), "-o", str(out)], check=True)
    library = ctypes.CDLL(str(out))
    double, integer = ctypes.c_double, ctypes.c_int
    library.lars.argtypes = [ctypes.POINTER(Step), ctypes.POINTER(integer), integer, double, double, double, integer, integer]
    library.adamw.argtypes = [ctypes.POINTER(Step), double, double, double, double]
    return library


def array(ctype, values):
    return (ctype * len(values))(*values)


def step_of(lists, lr, ema_momentum, lr_on_device):
    """Lists (None where not given) in the order of the kernel's table."""
    flat = [t for each in lists for t in (each or [None] * len(SIZES))]
    return Step(
        len(lists),
        len(SIZES),
        array(ctypes.c_void_p, [None if t is None else t.data_ptr() for t in flat]),
        array(ctypes.c_int, [DTYPES[None if t is None else t.dtype] for t in flat]),
        array(ctypes.c_int64, [t.numel() for t in lists[0]]),
        array(ctypes.c_double, DECAYS),
        -1.0 if lr_on_device else lr,
        ema_momentum,
        ctypes.pointer(ctypes.c_double(lr)) if lr_on_device else None,
        lists[-3] is not None,
    )


def made(dtypes, offset=0):
    """Lists of the sizes, at addresses ``offset`` elements from aligned ones."""

    def tensor(n, dtype):
        return torch.randn(n + offset).abs().to(dtype)[offset:]

    return [[tensor(n, dtype) for n in SIZES] if dtype else None for dtype in dtypes]


def clones(lists):
    return [tensors and [t.clone() for t in tensors] for tensors in lists]


def assert_equal(first, second, rtol=0.0):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a or [], b or [], strict=True):
            torch.testing.assert_close(x, y, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("form, nesterov, clip", RULES)
@pytest.mark.parametrize("dtypes", COMBINATIONS, ids=str)
def test_lars(kernels, dtypes, form, nesterov, clip, offset):
    lists = made(dtypes, offset)
    lists[0][3].zero_()
    expected = clones(lists)
    p, g, mu, ema, shadow, ema_shadow = expected
    adapt = [i % 3 != 2 for i in range(len(SIZES))]
    copies = {"ema": ema, "ema_momentum": 0.9, "shadow": shadow, "ema_shadow": ema_shadow}
    rates = {"lr": 0.3, "momentum": 0.8, "trust_coefficient": 0.02, "eps": 1e-3}
    lars_(p, g, mu, weight_decay=DECAYS, form=form, adapt=adapt, nesterov=nesterov, clip=clip, **rates, **copies)
    step = step_of(lists, 0.3, 0.9, lr_on_device=clip)
    kernels.lars(step, array(ctypes.c_int, adapt), FORMS.index(form), 0.8, 0.02, 1e-3, nesterov, clip)
    # norms of chunks are added in another order: 1e-16, which float32 does not see
    assert_equal(lists, expected, rtol=1e-13 if dtypes[0] == F64 else 0.0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtypes", COMBINATIONS, ids=str)
def test_adamw(kernels, dtypes, on_device, offset):
    lists = made([*dtypes[:3], *dtypes[2:]], offset)
    expected = clones(lists)
    p, g, m, v, ema, shadow, ema_shadow = expected
    copies = {"ema": ema, "ema_momentum": 0.3, "shadow": shadow, "ema_shadow": ema_shadow}
    adamw_(p, g, m, v, step=7, lr=0.3, betas=(0.4, 0.95), eps=1e-4, weight_decay=DECAYS, **copies)
    kernels.adamw(step_of(lists, 0.3, 0.3, on_device), 7.0, 0.4, 0.95, 1e-4)
    assert_equal(lists, expected)
