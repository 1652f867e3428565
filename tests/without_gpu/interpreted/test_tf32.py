"""TF32 in Triton's interpreter, with matrix units that drop the low 13 bits of their operands, as a GPU's do: no kernel may be more
than twice as wrong as products of operands rounded to nearest. Run with TRITON_INTERPRET=1."""

import numpy as np
import pytest
import torch
from torch import Tensor
from triton._C.libtriton import ir
from triton.runtime import interpreter

from fastssl.kernels import sigmoid_pair, similarity, similarity_cross
from fastssl.kernels.tiles import layout, plan, tf32
from fastssl.kernels.tiles.config import TileConfig
from fastssl.ops._operands import Similarity
from fastssl.reference import sigmoid_pair as reference_sigmoid
from fastssl.reference import similarity as reference
from fastssl.reference import similarity_cross as reference_cross
from fastssl.testing.compare import relative_error
from tests.without_gpu.interpreted.common import call, make, wide
from tests.without_gpu.interpreted.fixtures import product_of_float32
from tests.without_gpu.interpreted.test_cross import call as call_cross
from tests.without_gpu.interpreted.test_cross import cross


@pytest.fixture(autouse=True)
def truncating_products(monkeypatch):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    monkeypatch.setattr(plan, "pick_config", lambda *args: TileConfig(16, 16, 4, 2))
    cut = lambda t: (t.data.view(np.int32) & -0x2000).view(np.float32)  # noqa: E731

    def as_on_a_gpu(self, a, b, c, precision, *rest):
        assert precision == ir.INPUT_PRECISION.TF32
        return interpreter.TensorHandle(product_of_float32(cut(a), cut(b), c.data), c.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", as_on_a_gpu)
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def nearest(t: Tensor) -> Tensor:
    return ((t.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def compare(run, ours, reference, args) -> None:
    """``run(module, args)`` gives results by name; the yardstick is float64 but for x and y, which are rounded to nearest."""
    small = {k: nearest(v) if k in "xy" and v is not None else v for k, v in args.items()}
    found, truth, yardstick = run(ours, args), run(reference, wide(args)), run(reference, wide(small))
    for name, value in found.items():
        if value.numel() and value.is_floating_point():
            error, limit = relative_error(value, truth[name]), 2.0 * relative_error(yardstick[name], truth[name]) + 2.0**-15
            assert error <= limit, f"{name}: {error:.1e} is over {limit:.1e}"


@pytest.mark.parametrize("m", [None, 49], ids=["symmetric", "two-sided"])
@pytest.mark.parametrize("splits", [1, 2])
def test_similarity(tiles, m, splits):
    tiles(splits=splits)
    args, g = make(50, m, 64, ids="pair" if m is None else "third")
    need = (True, m is not None, False, True)
    compare(lambda module, args: call(module, args, g, 10.0, need), similarity, reference, args)


def test_a_queue_stored_by_columns_and_strided_rows(tiles):
    tiles()
    args, g = make(20, 36, 64)
    args["y"] = args["y"].t().contiguous().t()
    args["x"] = torch.cat([args["x"], args["x"]], 1)[:, :64]
    compare(lambda module, args: call(module, args, g, 10.0, (True, True, False, True)), similarity, reference, args)


def test_cross(tiles):
    tiles()
    args, g, h = cross(50, 45, 64, counted=False)
    compare(lambda module, args: call_cross(module, args, g, h, 10.0), similarity_cross, reference_cross, args)


def test_sigmoid_pair():
    args, _ = make(50, 45, 64)
    ids = torch.arange(50), torch.arange(45)

    def run(module, args):
        found = module.sigmoid_pair(args["x"], args["y"], 10.0, None, -5.0, None, *ids, None, None, (True,) * 4)
        return dict(zip(("loss", "dx", "dy", "dscale", "dbias"), found, strict=True))

    compare(run, sigmoid_pair, reference_sigmoid, args)


def test_rounding_is_to_nearest_ties_away_and_keeps_what_is_no_number():
    up, tie, down = 1.0 + 2.0**-10, 1.0 + 2.0**-11, 1.0 + 0.99 * 2.0**-11
    largest, not_a_number = torch.finfo(torch.float32).max, torch.tensor(-1, dtype=torch.int32).view(torch.float32).item()
    t = torch.tensor([[up, tie, -tie, down, largest, -torch.inf, not_a_number, 0.0]])
    expected = torch.tensor([[up, up, -up, 1.0, torch.inf, -torch.inf, torch.nan, 0.0]])
    torch.testing.assert_close(tf32.rounded(t), expected, rtol=0, atol=0, equal_nan=True)
    operands = Similarity(t, t, 1.0, None, None, None)
    rounded = layout.in_precision(operands, "tf32")
    assert layout.in_precision(operands, "ieee") is operands and rounded.x is rounded.y and rounded.x is not t
