"""The triangular forward in Triton's interpreter, on the CPU; run as ``test_similarity.py`` is, whose fixtures it shares;
and how rows are cut into parts."""

import math

import pytest
import torch

from fastssl.kernels import similarity as kernels
from fastssl.kernels import similarity_forward, tuned
from fastssl.kernels import similarity_triangle as triangle
from fastssl.kernels.tiles import config as tile_configs
from fastssl.kernels.tiles.config import TileConfig, pick_parts, pick_triangle
from fastssl.reference import similarity as reference
from tests.without_gpu.interpreted.common import BF16, F16, F32, check, make

FORWARD = ("fwd",)


@pytest.fixture
def parts(monkeypatch):
    """Small tiles and parts of a given number of rows; the list collects the sizes that the triangular forward served."""
    served = []
    forward = triangle.forward
    monkeypatch.setattr(triangle, "forward", lambda operands, *rest: (served.append(len(operands.x)), forward(operands, *rest)))

    def use(length=32, block_m=32, block_n=16):
        monkeypatch.setattr(similarity_forward, "pays", lambda rows, columns: True)
        monkeypatch.setattr(similarity_forward, "pick_triangle", lambda *_: TileConfig(block_m, block_n, 4, 2))
        monkeypatch.setattr(triangle, "pick_parts", lambda rows, *_: (-(-rows // length), length))
        return served

    return use


@pytest.mark.parametrize("n, length", [(1, 32), (33, 64), (64, 32), (70, 32), (100, 64)], ids=str)
@pytest.mark.parametrize("ids, d", [("pair", 16), ("third", 33), (None, 3)])
def test_shapes(parts, n, length, ids, d):
    """One to three parts, of one block of rows or two, whole and ragged."""
    served = parts(length)
    check(*make(n, None, d, ids=ids, factor=True), schedules=FORWARD)
    assert served == [n]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("scale", [100.0, -20.0, 0.0])
def test_types_and_temperatures(parts, dtype, scale):
    """At 100 logits are too large for sums without a maximum."""
    parts(64)
    check(*make(100, None, 24, dtype, ids="pair"), scale=scale, schedules=FORWARD)


@pytest.mark.parametrize("scale", [10.0, 60.0])
def test_what_is_left_for_the_backward(parts, scale):
    """No logit exceeds t, and t + log2 S is the log-sum-exp; no tile looks for the place of the largest."""
    served = parts(64)
    args, g = make(70, None, 24, ids="pair")
    check(args, g, scale, schedules=("bwd",))
    served.clear()
    lse, rank, (top, total), peak = kernels.similarity_fwd(args["x"], None, scale, None, args["x_id"], None, None, None)
    s = args["x"].double() @ args["x"].double().T * scale
    s = s.masked_fill(args["x_id"][:, None] == args["x_id"], -torch.inf)
    assert served == [70] and rank.shape == (0,) and (peak == -1).all()
    torch.testing.assert_close((top.double() + total.double().log2()) * math.log(2), s.logsumexp(1), rtol=1e-6, atol=1e-6)
    assert (top >= s.amax(1) / math.log(2) - 1e-5).all()
    torch.testing.assert_close(lse.double(), s.logsumexp(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [10.0, 80.0])
def test_everything_excluded(parts, scale):
    parts(64)
    args, g = make(70, None, 24)
    args["x_id"] = torch.zeros(70, dtype=torch.int32)
    assert (check(args, g, scale, schedules=("fwd", "bwd"))["lse"] == -torch.inf).all()
    args["x_id"][:64] = 1  # in a square on the diagonal nothing counts
    check(args, g, scale, schedules=FORWARD)
    args["x_id"] = torch.full((70,), -7)
    args["x_id"][66] = 1 << 40  # one row is left to all others
    found = check(args, g, scale, schedules=FORWARD)
    assert found["lse"].isfinite().all()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_one_far_row(parts, dtype):
    """2^s of its logits would be infinite, so that all rows take maxima."""
    parts(64)
    args, g = make(70, None, 16, dtype, ids="pair")
    args["x"][67] *= 1000.0
    assert check(args, g, schedules=FORWARD)["lse"].isfinite().all()


def test_same_bits_twice(parts):
    parts(64)
    args, _ = make(70, None, 24, BF16, ids="pair")
    call = lambda: kernels.similarity_fwd(args["x"], None, 10.0, None, args["x_id"], None, None, None)  # noqa: E731
    assert all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True))


def test_strided_rows_and_shipped_tiles(monkeypatch):
    monkeypatch.setattr(similarity_forward, "pays", lambda rows, columns: True)
    for n, d in ((256, 100), (140, 200)):
        args, g = make(n, None, d, BF16, ids="pair")
        args["x_id"] = args["x_id"].int()
        args["x"] = torch.nn.functional.pad(args["x"], (0, 3))[:, :d]
        check(args, g, schedules=FORWARD)


def test_only_what_it_computes_is_given_to_it(parts):
    served = parts()
    args, _ = make(40, None, 8, ids="pair")
    x, ids = args["x"], args["x_id"]
    bias, threshold = torch.zeros(40), torch.zeros(40)
    for y, y_bias, bar in ((x, None, None), (None, bias, None), (None, None, threshold)):
        got = kernels.similarity_fwd(x, y, 3.0, None, ids, ids, y_bias, bar)[0]
        torch.testing.assert_close(got, reference.similarity_fwd(x, y, 3.0, None, ids, ids, y_bias, bar)[0])
    kernels.similarity_one_pass(x, None, 3.0, None, ids, ids, None, None)
    assert served == []


def test_the_plain_forward_stays_where_it_is_chosen(monkeypatch):
    ids = torch.arange(512, dtype=torch.int32)
    ask = lambda rows, some, dtype=BF16, precision="ieee": pick_triangle(rows, some, 90, dtype, 128, precision)  # noqa: E731
    plain, usual = ask(512, ids), ask(500, ids)
    assert plain.block_m == 256 and usual.block_m == 128 and ask(512, ids.long()) == ask(512, None) == usual
    assert ask(512, ids, F32) is None and ask(512, ids, F32, "tf32") is not None
    tile_configs._measured_slower.cache_clear()
    monkeypatch.setattr(tuned, "table", lambda op, arch: {("triangle plain", "16-bit", 128): ()})
    assert ask(512, ids) is None and ask(500, ids) == usual
    tile_configs._measured_slower.cache_clear()


def test_parts_cover_the_rows_and_pairs_fill_the_device():
    for n in (1, 5793, 8192, 65536, 131072, 1 << 20):
        for config in (TileConfig(256, 64, 4, 2, 2), TileConfig(32, 64, 4, 2)):
            parts, length = pick_parts(n, config, 132)
            assert parts <= 32 and (parts - 1) * length < n <= parts * length
            assert length % config.block_m == 0 and length % config.block_n == 0
    assert pick_parts(65536, TileConfig(256, 64, 4, 2, 2), 132) == (32, 2048)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_every_pair_of_parts_once(count):
    """What the kernel makes of its program's number."""
    pairs = {frozenset((p % count, (p % count + p // count) % count)) for p in range(count * (count + 1) // 2)}
    assert len(pairs) == count * (count + 1) // 2
