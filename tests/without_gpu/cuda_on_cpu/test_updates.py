"""The CUDA kernels' own source, compiled for the CPU, against the C++ kernels: same bits.

What this cannot show: races between blocks, and what nvcc makes of the source. Those wait for tests/gpu.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastssl.functional import ema_update_, queue_push_

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3, None: 4}
CHUNK = 8192


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    out = tmp_path_factory.mktemp("cuda_on_cpu") / "kernels.so"
    folder = ROOT / "tests" / "without_gpu" / "cuda_on_cpu"
    includes = [f"-I{path}" for path in (ROOT / "csrc", ROOT / "csrc" / "cuda", folder)]
    fma = ["-mfma"] if "fma" in Path("/proc/cpuinfo").read_text() else []
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-Wno-unknown-pragmas", *fma]
    subprocess.run(["g++", *flags, *includes, str(folder / "kernels.cpp"), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def table(lists):
    """Lists (None where not given) of equally many tensors -> data, dtype and count as the driver takes them."""
    tensors = len(lists[0])
    flat = [t for each in lists for t in (each or [None] * tensors)]
    data = (ctypes.c_void_p * len(flat))(*(None if t is None else t.data_ptr() for t in flat))
    dtype = (ctypes.c_int * len(flat))(*(DTYPES[None if t is None else t.dtype] for t in flat))
    count = (ctypes.c_int64 * tensors)(*(t.numel() for t in lists[0]))
    return tensors, data, dtype, count


def copies(tensors):
    return [t.clone() for t in tensors]


SIZES = (1, 3, 8, 1000, CHUNK, CHUNK + 4, 2 * CHUNK + 13, 0, 4097)
COMBINATIONS = [
    (torch.float32, torch.float32, None),
    (torch.float32, torch.float32, torch.bfloat16),
    (torch.float32, torch.bfloat16, torch.float16),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float16, torch.bfloat16, None),
    (torch.float64, torch.float64, torch.float64),
]


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("order", ["lerp", "mul_add"])
@pytest.mark.parametrize("dtypes", COMBINATIONS, ids=str)
def test_ema(kernels, dtypes, order, momentum):
    e, p, s = ([torch.randn(n).to(dtype) for n in SIZES] if dtype else None for dtype in dtypes)
    expected, expected_shadow = copies(e), copies(s) if s else None
    ema_update_(expected, p, momentum, order=order, shadow=expected_shadow)
    on_device = ctypes.byref(ctypes.c_double(momentum)) if momentum == 0.3 else None
    kernels.ema_update(*table([e, p, s]), ctypes.c_double(momentum), on_device, int(order == "mul_add"), 0, ctypes.c_int64(0))
    assert all(map(torch.equal, e, expected))
    assert s is None or all(map(torch.equal, s, expected_shadow))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ema_rounds_at_random_as_the_cpu_does_also_at_odd_addresses(kernels, dtype, offset):
    e, p = ([torch.randn(n + offset)[offset:].to(dtype)] for n in (2 * CHUNK + 11,) * 2)
    e = [torch.cat([torch.zeros(offset, dtype=dtype), e[0]])[offset:]]
    expected = copies(e)
    ema_update_(expected, p, 0.999, rounding="stochastic", seed=-7)
    kernels.ema_update(*table([e, p, None]), ctypes.c_double(0.999), None, 0, 1, ctypes.c_int64(-7))
    assert torch.equal(e[0], expected[0])


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 65504.0, 65520.0, 1e-7, 6e-8, -3e-8, 1e30, -0.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_special_values_are_rounded_as_torch_rounds_them(kernels, dtype, special):
    e, p, shadow = [torch.zeros(16)], [torch.full((16,), special)], [torch.ones(16, dtype=dtype)]
    kernels.ema_update(*table([e, p, shadow]), ctypes.c_double(0.0), None, 1, 0, ctypes.c_int64(0))
    torch.testing.assert_close(shadow[0], p[0].to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("overflow", ["wrap", "truncate"])
@pytest.mark.parametrize("layout", ["dk", "kd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_queue(kernels, dtype, layout, overflow):
    generator = torch.Generator().manual_seed(3)
    ints = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    for _ in range(12):
        size, width, count = ints(1, 90), ints(1, 70), ints(1, 150)
        queue, keys = torch.randn(size, width).to(dtype), torch.randn(count, 2 * width).to(dtype)[:, ::2]
        queue = queue.t().contiguous() if layout == "dk" else queue
        ptr = torch.tensor([ints(0, size)])
        labels, label_queue = torch.randint(0, 99, (count,), dtype=torch.int32), torch.zeros(size, dtype=torch.int32)
        expected = copies([queue, ptr, label_queue])
        queue_push_(expected[0], expected[1], keys, layout=layout, overflow=overflow, label_queue=expected[2], labels=labels)
        row = int(layout == "dk")
        strides = (queue.stride(row), queue.stride(1 - row), *keys.stride(), label_queue.stride(0), labels.stride(0))
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (queue, keys, ptr, label_queue, labels)]
        shape = [ctypes.c_int64(n) for n in (size, count, width)]
        kernels.queue_push(queue.element_size(), *pointers, 4, *shape, (ctypes.c_int64 * 6)(*strides), int(overflow == "truncate"))
        for ours, theirs in zip((queue, ptr, label_queue), expected, strict=True):
            assert torch.equal(ours, theirs), (size, width, count)
