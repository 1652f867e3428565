"""The Triton kernels of ``similarity_lse`` in Triton's interpreter, on the CPU. The interpreter is chosen by TRITON_INTERPRET=1
when Triton is first imported, and stays for good, so these tests are a run of their own, the second of ``make test``.
``python -m tests.races`` runs the same cases with ttsem in its place, which needs none of the interpreter's mends (fixtures.py)."""

import pytest
import torch

from fastssl.kernels import similarity as kernels
from fastssl.kernels import similarity_chunked as chunked
from fastssl.kernels import similarity_forward
from fastssl.kernels.tiles import layout
from fastssl.kernels.tiles.config import WIDEST
from fastssl.kernels.tiles.row_bounds import row_bounds
from fastssl.reference import similarity as reference
from fastssl.testing.compare import relative_error
from tests.without_gpu.interpreted.common import BF16, F16, F32, call, check, make, random_threshold, registered, wide

SHAPES = [(1, 1, 1), (1, 70, 3), (70, 1, 33), (33, 50, 16), (70, 45, 130), (5, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_two_sided(tiles, shape, splits):
    tiles(splits=splits, bounds=splits == 1)
    check(*make(*shape, ids="third", bias=True, factor=True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (70, 33), (49, 130)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("splits", [1, 2])
def test_symmetric(tiles, shape, bias, splits):
    tiles(splits=splits, bounds=splits == 1)
    n, d = shape
    check(*make(n, None, d, ids="pair", bias=bias, factor=True))


@pytest.mark.parametrize("m", [None, 48], ids=["symmetric", "two-sided"])
def test_whole_tiles(tiles, m):
    """Nothing to mask: neither rows, nor columns, nor a row's end."""
    tiles(splits=2)
    check(*make(64, m, 16, F16, ids="pair" if m is None else "third"))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("m", [None, 49], ids=["symmetric", "two-sided"])
@pytest.mark.parametrize("scale", [100.0, -20.0])
def test_types_and_temperatures(tiles, dtype, m, scale):
    tiles(splits=2)
    check(*make(50, m, 24, dtype, ids="pair" if m is None else "third"), scale=scale)


@pytest.mark.parametrize("ids", ["pair", "third"])
@pytest.mark.parametrize("scale", [-10.0, 60.0])
def test_bounds_of_the_columns_change_nothing(tiles, scale, ids):
    """Logits below the bound take no maximum, tiles far from the diagonal no ids; above the bound, and with ids everywhere, all."""
    args, g = make(70, None, 16, ids=ids)
    with_bounds, without = [], []
    for found, bounds in ((with_bounds, True), (without, False)):
        tiles(splits=2, bounds=bounds)
        found += check(args, g, scale).values()
    for ours, other in zip(with_bounds, without, strict=True):
        assert relative_error(ours, other) < 1e-5  # of a whole: an entry may be what larger terms leave


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_row_bounds(dtype, transposed):
    y = torch.randn(21, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = y.T.contiguous().T if transposed else y
    ids = torch.tensor([5, -7, 1 << 40, 3] + [9] * 17)
    ranges, norm = row_bounds(y, ids, 4, True)
    blocks = [slice(start, start + 4) for start in range(0, 21, 4)]
    assert ranges.tolist() == [[int(ids[b].min()), int(ids[b].max())] for b in blocks]
    torch.testing.assert_close(norm, torch.stack([y[b].float().norm(dim=1).max() for b in blocks]))
    assert row_bounds(y, ids.int(), 4, False)[1] is None and row_bounds(y, None, 4, True)[0] is None
    assert row_bounds(y, torch.arange(21, dtype=torch.int32), 16, False)[0].tolist() == [[0, 15], [16, 20]]


def test_a_long_row_is_no_small_logit(tiles):
    """One column of length 1,000 in the last tile: 2^s of its logits would be infinite."""
    tiles()
    args, g = make(40, 50, 16, ids="third")
    args["y"][-1] *= 1000.0
    found = check(args, g, 10.0)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("m", [None, 40], ids=["symmetric", "two-sided"])
def test_float16_weights_of_a_mean_do_not_vanish(tiles, m):
    """g = 1e-6 puts every weight under float16's smallest number."""
    tiles()
    args, g = make(64, m, 24, F16, ids="third" if m else "pair")
    ours = call(kernels, args, 1e-6 * g, 1.0, (True, True, False, True), ("bwd",))
    truth = call(reference, wide(args), 1e-6 * g.double(), 1.0, (True, True, False, True), ("bwd",))
    for name in ("dx", "dscale") if m is None else ("dx", "dy", "dscale"):
        error = (ours[name].double() - truth[name]).abs().max()
        assert error <= 2.0**-24, f"{name} is off by {error:.1e}, one unit of float16 is {2.0**-24:.1e}"
    assert ours["dscale"] != 0


@pytest.mark.parametrize("m", [None, 37], ids=["symmetric", "two-sided"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_unnormalised(tiles, m, dtype):
    """Logits of several hundred: more than one exponential can hold, so the symmetric backward takes its second path."""
    tiles()
    check(*make(40, m, 33, dtype, unit=False, ids="third"), scale=5.0)


def test_both_symmetric_paths_agree(tiles):
    tiles()
    args, g = make(50, None, 16, ids="pair")
    near = check(args, g)["dx"]
    args["x"] = torch.cat([args["x"], 40.0 * args["x"][:1]])  # one far row: the range of lse exceeds 64
    args["x_id"] = torch.arange(51)
    far = check(args, torch.cat([g, g[:1]]))["dx"]
    assert near.isfinite().all() and far.isfinite().all()


@pytest.mark.parametrize("m", [None, 21], ids=["symmetric", "two-sided"])
@pytest.mark.parametrize("splits", [1, 2])
def test_rows_with_every_column_excluded(tiles, m, splits):
    tiles(splits=splits)
    args, g = make(40, m, 8, ids="all", bias=m is not None)
    if m is None:
        args["x_id"] = torch.zeros(40, dtype=torch.int64)
    g[-1] = float("inf")  # of an excluded row: must not become NaN
    ours = call(kernels, args, g, 4.0, (True, m is not None, m is not None, True))
    dead = args["x_id"] == (0 if m is None else args["y_id"][0])
    assert (ours["lse"][dead] == -torch.inf).all() and (ours["mean"][dead] == 0).all() and (ours["dx"][dead] == 0).all()
    assert all(t.isfinite().all() for k, t in ours.items() if "lse" not in k)
    g[-1] = 1.0
    check(args, g, 4.0)


def test_no_scale(tiles):
    """The temperature's gradient is not zero where the scale is."""
    tiles()
    for m in (None, 20):
        check(*make(20, m, 8, ids="third", bias=m is not None), scale=0.0)


@pytest.mark.parametrize("need", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 1), (0, 0, 1, 1), (1, 0, 1, 0)])
@pytest.mark.parametrize("d", [8, 260])
@pytest.mark.parametrize("m", [None, 37], ids=["symmetric", "two-sided"])
def test_only_what_is_needed(tiles, need, d, m):
    tiles(splits=2)
    n, m = (40, m) if d < 100 else (7, m and 9)
    check(*make(n, m, d, ids="third", bias=True), need=tuple(map(bool, need)), schedules=("bwd",))


@pytest.mark.parametrize("shape", [(1, 1, 3), (33, 50, 16), (40, None, 24), (7, 9, 260), (7, None, 260)], ids=str)
@pytest.mark.parametrize(("scale", "bias"), [(10.0, False), (-20.0, True), (0.0, False), (0.0, True)])
def test_rank(tiles, monkeypatch, shape, scale, bias):
    tiles(splits=2)
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, 8), min(m, 7)))
    args, g = make(*shape, ids="third", bias=bias, factor=True)
    threshold = random_threshold(shape[0], F32 if bias else torch.float64).repeat_interleave(2)[::2]
    check(args | {"threshold": threshold}, g, scale, schedules=("fwd", "one_pass"))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_rank_counts_strictly_above(tiles, dtype):
    """A threshold that is itself a logit, and columns that repeat it; also without ids, splits and a last tile to mask."""
    tiles()
    x, y = (torch.randint(-2, 3, (rows, 8), generator=torch.Generator().manual_seed(1)).to(dtype) for rows in (32, 64))
    s = 3.0 * (x.float() @ y.float().T)
    for threshold in (s[:, 5], s.max(1).values, s.min(1).values):
        _, rank, *_ = kernels.similarity_fwd(x, y, 3.0, None, None, None, None, threshold)
        assert torch.equal(rank, (s > threshold[:, None]).sum(1, dtype=torch.int32))


@pytest.mark.parametrize("shape", [(1, 1, 3), (33, 50, 16), (40, 21, 130), (7, 9, 260)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_columns_stored_transposed(tiles, shape, dtype):
    """A queue (D, K) gives the bits of its transpose, but in chunks, whose product is torch's; the forward does not copy it."""
    tiles(splits=2)
    args, g = make(*shape, dtype, ids="third", bias=True)
    args["threshold"] = random_threshold(shape[0])
    queue = args["y"].t().contiguous()
    got = check(args | {"y": queue.t()}, g)
    if shape[2] <= WIDEST[dtype]:
        want = call(kernels, args, g, 10.0)
        assert all(torch.equal(got[k], want[k]) for k in want)
    assert layout.dense_either_way(queue.t()).data_ptr() == queue.data_ptr()


def test_strided_inputs(tiles):
    tiles()
    base, g = make(33, 40, 24, ids="third", bias=True)
    x, y = base["x"], base["y"]
    every_other = torch.stack([y, y], 1).flatten(0, 1)[::2]
    padded = torch.nn.functional.pad(x, (0, 5))[:, :24]
    transposed = x.t().contiguous().t()
    assert not (every_other.is_contiguous() or padded.is_contiguous() or transposed.is_contiguous())
    want = check(base, g)
    bias, ids = torch.stack([base["y_bias"]] * 2, 1)[:, 0], torch.stack([base["x_id"]] * 2, 1)[:, 0]
    for rows in (padded, transposed):
        got = check(dict(base, x=rows, y=every_other, y_bias=bias, x_id=ids), g)
        assert all(torch.equal(got[k], want[k]) for k in want)
    check(dict(base, x=x[:1].expand(33, 24)), g[:1].expand(33))


@pytest.mark.parametrize("shape", [(10, 17, 257), (11, None, 300), (1, 1, 300)], ids=str)
@pytest.mark.parametrize(("dtype", "bias"), [(F32, True), (F32, False), (BF16, False), (F16, True)], ids=str)
def test_chunked(monkeypatch, products, shape, bias, dtype):
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, 8), min(m, 7)))
    check(*make(*shape, dtype, ids="pair" if shape[1] is None else "third", bias=bias, factor=True))


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("m", [None, 37], ids=["symmetric", "two-sided"])
@pytest.mark.parametrize("how", ["tiles", "chunks"])
def test_any_norm(tiles, monkeypatch, products, size, m, how):
    """Logits of 1e3 to 1e8, where a row has one weight of 1: products of forward and backward need not agree on their last bits."""
    tiles(splits=2)
    for module in (kernels, similarity_forward):
        monkeypatch.setattr(module, "tile_fits", lambda *_: how == "tiles")
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, 16), min(m, 24)))
    args, g = make(40, m, 20, unit=False, ids="pair" if m is None else "third")
    check({k: size * v if k in ("x", "y") and v is not None else v for k, v in args.items()}, g, 100.0)


def test_chunked_with_every_column_excluded(monkeypatch):
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (8, 7))
    for m in (None, 9):
        args, g = make(12, m, 260, ids="all", bias=True)
        check(args, g, 4.0)


def test_float32_that_wants_no_rounding_uses_chunks_when_large(monkeypatch):
    """The same function with and without tiles."""
    args, g = make(10, 17, 24, ids="third", bias=True)
    want = check(args, g)
    for module in (kernels, similarity_forward):
        monkeypatch.setattr(module, "tile_fits", lambda *_: False)
    got = check(args, g)
    assert all(torch.allclose(got[k], want[k], atol=1e-5) for k in want)


@pytest.mark.parametrize("d", [24, 300])
def test_same_bits_twice(tiles, d):
    tiles(splits=3)
    for m in (None, 60 if d < 100 else 9):
        args, g = make(50 if d < 100 else 7, m, d, BF16, ids="third", bias=m is not None)
        first, second = (call(kernels, args, g, 20.0, (True, m is not None, m is not None, True)) for _ in range(2))
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_shipped_configs():
    """The tiles that a Hopper GPU gets, on shapes smaller and larger than one of them."""
    for dtype, n, d in ((BF16, 130, 128), (F32, 35, 40), (F16, 66, 200)):
        check(*make(n, None, d, dtype, ids="pair"))
        check(*make(3, n + 3, d, dtype, ids="third", bias=True))


def test_float64_falls_back_to_the_reference():
    args, g = make(6, 5, 4, torch.float64, ids="third")
    ops = registered("similarity", "similarity_fwd", "similarity_one_pass", "similarity_bwd")
    ours, want = call(ops, args, g.double(), 3.0), call(reference, args, g.double(), 3.0)
    assert all(torch.equal(ours[k], want[k]) for k in want)
    rounded = {k: v.float() if k in ("x", "y") else v for k, v in args.items()}
    ours, want = call(ops, rounded, g, 3.0), call(kernels, rounded, g, 3.0)
    assert all(torch.equal(ours[k], want[k]) for k in want)
