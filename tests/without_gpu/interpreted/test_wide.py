"""``similarity_wide`` in Triton's interpreter, on the CPU; run as ``test_similarity.py`` is, whose fixtures it shares."""

import pytest
import torch
import triton

from fastssl.kernels import similarity as kernels
from fastssl.kernels import similarity_chunked as chunked
from fastssl.kernels import similarity_cross as cross_kernels
from fastssl.kernels import similarity_forward
from fastssl.kernels import similarity_wide as wide_kernels
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig, pick_config, w_shape
from tests.without_gpu.interpreted import common, test_cross
from tests.without_gpu.interpreted.common import BF16, F16, make, wide
from tests.without_gpu.interpreted.test_cross import cross

ALL = (True, True, True)


@pytest.fixture
def small(monkeypatch):
    """Small tiles of every problem of 16-bit rows wider than 16; groups, chunks and slices that leave a rest; no vendor's chunk."""

    def use(block_n=32, group=32, chunk=(48, 64)):
        for module in (kernels, similarity_forward, cross_kernels):
            monkeypatch.setattr(module, "tile_fits", lambda *_: False)
        tiles = {"wide": TileConfig(16, block_n, 4, 2), "wide two": TileConfig(16, 16, 4, 2)}
        monkeypatch.setattr(plan, "pick_config", lambda kernel, *_: tiles[kernel])
        for name, value in {"LEAST": 0, "GROUP": group, "SLICE": 16, "RASTER": 2}.items():
            monkeypatch.setattr(wide_kernels, name, value)
        monkeypatch.setattr(wide_kernels, "w_shape", lambda n, m: (min(n, chunk[0]), min(m, chunk[1])))
        for name in ("forward", "backward", "cross_forward", "cross_backward"):
            monkeypatch.setattr(chunked, name, None)

    return use


def check(args, g, scale=10.0):
    return common.check(args, g, scale, schedules=("bwd",))


def check_cross(args, g, h, scale=10.0, need=ALL):
    return test_cross.check(args, g, h, scale, need)


@pytest.mark.parametrize(
    ("shape", "ids"),
    [((1, 1, 16), None), ((1, 70, 16), "third"), ((50, 1, 32), "third"), ((33, 50, 48), "third"), ((64, 64, 32), None)],
)
def test_cross_shapes(small, shape, ids):
    small()
    check_cross(*cross(*shape, BF16, ids=ids, factor=True, counted=False))


@pytest.mark.parametrize(("dtype", "scale"), [(BF16, 100.0), (F16, 100.0), (BF16, -20.0), (BF16, 0.0)], ids=str)
def test_temperatures(small, dtype, scale):
    small()
    check_cross(*cross(40, 37, 32, dtype, ids="third", counted=False), scale=scale)


def test_logits_too_far_apart_for_one_exponential(small):
    """Several hundred in one tile: rows and columns take their own maxima, and the weights two exponentials."""
    small()
    args, g, h = cross(40, 37, 32, BF16, unit=False, ids="third", counted=False)
    found = check_cross(args, g, h, 5.0)
    assert found["row"].max() - found["row"].min() > 100.0


def test_a_row_and_a_column_far_below_the_rest_of_their_tile(small):
    """Under one base for the whole tile their terms would all be 0: 2^-150 of the largest."""
    small()
    args, g, h = cross(16, 32, 16, BF16, counted=False)
    args["x"] = torch.zeros(16, 16, dtype=BF16)
    args["y"] = torch.zeros(32, 16, dtype=BF16)
    args["x"][:, 0], args["y"][:, 0] = 10.0, 20.0
    args["x"][3, 0], args["y"][5, 0] = -1.0, -2.0
    check_cross(args, g, h, 1.0)


def test_wholly_excluded(small):
    small()
    args, g, h = cross(40, 37, 16, BF16, counted=False)
    args |= {"x_id": torch.zeros(40, dtype=torch.int64), "y_id": torch.zeros(37, dtype=torch.int64)}
    args["x_id"][2], args["y_id"][3] = 2, 1  # one column is left to all rows, and all columns to one row
    check_cross(args, g, h)
    args["y_id"][3] = 0  # no column left, but to one row
    ours = check_cross(args, g, h)
    dead = torch.arange(40) != 2
    assert (ours["row"][dead] == -torch.inf).all() and (ours["dx"][dead] == 0).all()


def test_a_row_excluded_from_a_tile_whose_base_lies_far_above_it(small):
    """Nothing summed under 2^84 must not hide what the row has at 2^-144."""
    small()
    args, g, h = cross(16, 64, 16, BF16, counted=False)
    args["x"], args["y"] = torch.zeros(16, 16, dtype=BF16), torch.zeros(64, 16, dtype=BF16)
    args["x"][:, 0], args["y"][:32, 0], args["y"][32:, 0] = 10.0, 10.0, -10.0
    args |= {"x_id": torch.ones(16, dtype=torch.int64), "y_id": torch.zeros(64, dtype=torch.int64)}
    args["x_id"][3] = args["y_id"][:32] = 7
    assert check_cross(args, g, h, 1.0)["row"].isfinite().all()


@pytest.mark.parametrize(("m", "dtype", "unit"), [(None, BF16, True), (None, F16, False), (50, F16, True), (50, BF16, False)])
def test_rows_alone(small, m, dtype, unit):
    """Symmetric and two-sided; unnormalised logits are of several hundred."""
    small()
    args, g = make(42, m, 32, dtype, unit=unit, ids="pair" if m is None else "third", factor=True)
    check(args, g, 10.0 if unit else 5.0)


@pytest.mark.parametrize("need", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_only_what_is_needed(small, need):
    small()
    check_cross(*cross(20, 35, 16, BF16, ids="third", counted=False), need=tuple(map(bool, need)))


def test_ids_are_looked_at_where_they_meet_in_every_chunk(small):
    """Row numbers, of which every tile of the diagonal holds some; chunks begin inside the ranges of ids."""
    small(chunk=(16, 32))
    args, g, h = cross(70, 70, 16, BF16, counted=False)
    args |= {"x_id": torch.arange(70), "y_id": torch.arange(70)}
    check_cross(args, g, h)


def test_float16_weights_of_a_mean_do_not_vanish(small):
    small()
    args, g, h = cross(40, 36, 32, F16, ids="third", counted=False)
    call, reference = test_cross.call, test_cross.reference
    ours = call(cross_kernels, args, 1e-6 * g, 1e-6 * h, 1.0)
    truth = call(reference, wide(args), 1e-6 * g.double(), 1e-6 * h.double(), 1.0)
    assert all((ours[name].double() - truth[name]).abs().max() <= 2.0**-24 for name in ("dx", "dy", "dscale"))
    assert ours["dscale"] != 0


def test_same_bits_twice_whatever_the_strides(small):
    small()
    args, g, h = cross(33, 40, 32, BF16, ids="third", counted=False)
    first = test_cross.call(cross_kernels, args, g, h, 20.0)
    rows = torch.stack([args["x"]] * 2, 1).flatten(0, 1)[::2]
    again = test_cross.call(cross_kernels, args | {"x": rows, "y": args["y"].t().contiguous().t()}, g, h, 20.0)
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_sums_under_a_base_and_under_maxima_merge(small):
    """Tiles of one row, some under one base and some far apart, with the largest logit in either."""
    small()
    args, g, h = cross(48, 96, 16, BF16, counted=False)
    args["y"][40:44] *= 400.0
    check_cross(args, g, h, 10.0)


def test_what_goes_where():
    half, odd, single = torch.zeros(2048, 320, dtype=BF16), torch.zeros(2048, 300, dtype=BF16), torch.zeros(2048, 320)
    assert wide_kernels.takes(half, half) and not wide_kernels.takes(half[:2047], half)
    assert not wide_kernels.takes(single, single) and not wide_kernels.takes(odd, odd)


def test_a_measured_tile_of_no_rows_leaves_them_to_the_chunks(monkeypatch):
    monkeypatch.setattr(plan, "pick_config", lambda *_: TileConfig(0, 0, 0, 0))
    half = torch.zeros(4096, 320, dtype=BF16)
    assert not wide_kernels.takes(half, half)


def test_chunks_of_weights_begin_with_a_range_of_ids():
    for n, m in ((1, 1), (16384, 16384), (65536, 65536), (300, 10**7), (10**7, 3), (1 << 20, 1000)):
        r, c = w_shape(n, m)
        assert 1 <= r <= n and 1 <= c <= m and 2 * r * c <= 1 << 28
        assert c == m or c % pick_config("wide", 90, BF16, 512).block_n == 0
        assert triton.cdiv(r, 128) * triton.cdiv(c, 256) < 1 << 31
