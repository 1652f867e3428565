"""``similarity_cross`` in Triton's interpreter, on the CPU; run as ``test_similarity.py`` is, whose fixtures it shares;
and how shapes are cut into splits, groups and chunks."""

import pytest
import torch
import triton
from torch import Tensor

from fastssl.kernels import similarity_chunked as chunked
from fastssl.kernels import similarity_cross as kernels
from fastssl.kernels.tiles.config import TileConfig, chunk_shape, pick_groups, pick_splits
from fastssl.reference import similarity_cross as reference
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.common import BF16, F16, F32, as_stored, dscale_terms, make, random_threshold, registered, wide

ALL = (True, True, True)
NAMES = ("dx", "dy", "dscale")


def cross(n, m, d, dtype=F32, counted=True, **kwargs):
    """The arguments of the forward but for the scale, and upstream gradients g (n,), h (m,); ``counted``: with a threshold."""
    args, g = make(n, m, d, dtype, **kwargs)
    args.pop("y_bias")
    return (
        args | {"threshold": random_threshold(n) if counted else None},
        g,
        torch.rand(m, generator=torch.Generator().manual_seed(9)) + 0.1,
    )


def call(module, args, g, h, scale, need=ALL) -> dict[str, Tensor]:
    positional = (args["x"], args["y"], scale, args["scale_factor"], args["x_id"], args["y_id"])
    row, column, rank, kept, *state = module.similarity_cross_fwd(*positional, args["threshold"], args.get("keep_rows", 0))
    gradients = as_stored(module, args["x"], module.similarity_cross_bwd(g, h, *state, kept, *positional, need))
    return {"row": row, "column": column, "rank": rank, "kept": kept, **dict(zip(NAMES, gradients, strict=True))}


def check(args, g, h, scale=10.0, need=ALL) -> dict[str, Tensor]:
    ours, plain = (call(module, args, g, h, scale, need) for module in (kernels, reference))
    truth = call(reference, wide(args), g.double(), h.double(), scale, need)
    for name, value in ours.items():
        assert value.shape == plain[name].shape and value.dtype == plain[name].dtype and value.is_contiguous(), name
        if name == "kept":
            torch.testing.assert_close(value, plain[name])
        elif name == "rank":
            assert torch.equal(value, truth[name])
        else:
            size = sum(dscale_terms(args, *way) for way in ((g, scale), (h, scale, 0))) if name == "dscale" else 0.0
            assert_no_worse(name, value, plain[name], truth[name], args["x"].dtype, size)
    return ours


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 70, 3), (70, 1, 33), (33, 50, 16), (70, 45, 130), (130, 5, 2)], ids=str)
@pytest.mark.parametrize("ids", [None, "third"])
@pytest.mark.parametrize("splits", [1, 3])
def test_shapes(tiles, shape, ids, splits):
    tiles(splits=splits)
    check(*cross(*shape, ids=ids, factor=True, counted=splits == 1))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("scale", [100.0, -20.0, 0.0])
def test_types_and_temperatures(tiles, dtype, scale):
    for counted in (True, False):
        tiles(splits=2, bounds=not counted)
        check(*cross(70, 49, 24, dtype, ids="third", counted=counted), scale=scale)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_unnormalised(tiles, dtype):
    """Logits of several hundred: rows and columns too far apart for one exponential."""
    tiles(splits=2)
    check(*cross(70, 37, 33, dtype, unit=False, ids="third"), scale=5.0)


@pytest.mark.parametrize("d", [8, 260])
def test_rows_and_columns_with_everything_excluded(tiles, monkeypatch, d):
    tiles(splits=2)
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (5, 7))
    n, m = (70, 40) if d < 100 else (12, 9)
    args, g, h = cross(n, m, d)
    args |= {"x_id": torch.zeros(n, dtype=torch.int64), "y_id": torch.zeros(m, dtype=torch.int64)}
    check(args, g, h)  # everything
    args["y_id"][3], args["x_id"][2] = 1, 2  # one column is left to all rows, and all columns to one row
    check(args, g, h)
    args["y_id"][3] = 0  # now rows with no column, and no column without a row
    ours = check(args, g, h)
    dead = torch.arange(n) != 2
    assert (ours["row"][dead] == -torch.inf).all() and (ours["dx"][dead] == 0).all() and (ours["rank"][dead] == 0).all()
    g[-1] = torch.inf  # of an excluded row: must not become NaN
    gradients = call(kernels, args, g, h, 10.0)
    assert all(gradients[name].isfinite().all() for name in NAMES)


@pytest.mark.parametrize("need", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("d", [8, 260])
def test_only_what_is_needed(tiles, need, d):
    tiles(splits=2)
    check(*cross(*((40, 37) if d < 100 else (7, 9)), d, ids="third"), need=tuple(map(bool, need)))


@pytest.mark.parametrize(("shape", "rows"), [((10, 17, 257), 5), ((75, 9, 260), 70), ((1, 1, 300), 5)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_chunked(monkeypatch, products, shape, rows, dtype):
    """Four programs share the rows of a chunk, 16 at a time: of 70 the last gets fewer, of 5 only the first gets any."""
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, rows), min(m, 7)))
    check(*cross(*shape, dtype, ids="third", factor=True))


@pytest.mark.parametrize("size", [1.0, 300.0])
@pytest.mark.parametrize("how", ["tiles", "chunks"])
def test_any_norm(tiles, monkeypatch, products, size, how):
    """Logits of 1e3 to 1e8, as in ``test_similarity.py``."""
    tiles(splits=2)
    monkeypatch.setattr(kernels, "tile_fits", lambda *_: how == "tiles")
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, 16), min(m, 24)))
    args, g, h = cross(40, 37, 20, unit=False, ids="third", counted=False)
    check(args | {"x": size * args["x"], "y": size * args["y"]}, g, h, 100.0)


def test_strided_inputs(tiles):
    tiles(splits=2)
    args, g, h = cross(33, 50, 16, ids="third")
    want = check(args, g, h)
    for columns in (args["y"].t().contiguous().t(), torch.nn.functional.pad(args["y"], (0, 3))[:, :16]):
        rows = torch.stack([args["x"]] * 2, 1).flatten(0, 1)[::2]
        got = call(kernels, args | {"x": rows, "y": columns}, g, h, 10.0)
        assert all(torch.equal(got[k], want[k]) for k in want)
    check(args, g[:1].expand(33), h[:1].expand(50))


def test_float16_weights_of_a_mean_do_not_vanish(tiles):
    tiles()
    args, g, h = cross(64, 40, 24, F16, ids="third")
    ours = call(kernels, args, 1e-6 * g, 1e-6 * h, 1.0)
    truth = call(reference, wide(args), 1e-6 * g.double(), 1e-6 * h.double(), 1.0)
    assert all((ours[name].double() - truth[name]).abs().max() <= 2.0**-24 for name in NAMES) and ours["dscale"] != 0


@pytest.mark.parametrize("d", [24, 300])
def test_same_bits_twice(tiles, d):
    tiles(splits=3)
    args, g, h = cross(*((50, 60) if d < 100 else (7, 9)), d, BF16, ids="third")
    first, second = (call(kernels, args, g, h, 20.0) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_shipped_configs():
    """The tiles that a Hopper GPU gets."""
    for dtype, n, m, d in ((BF16, 140, 70, 128), (F32, 100, 40, 40), (F16, 66, 70, 200)):
        check(*cross(n, m, d, dtype, ids="third"))


def test_kept_logits(tiles):
    tiles()
    args, g, h = cross(6, 5, 4, ids="third")
    assert check(args | {"keep_rows": 4}, g, h)["kept"].shape == (4, 5)


def test_no_threshold_and_float64(tiles):
    tiles()
    for d in (4, 260):
        args, g, h = cross(6, 5, d, ids="third")
        args["threshold"] = None
        assert check(args, g, h)["rank"].shape == (0,)
    ops = registered("similarity_cross", "similarity_cross_fwd", "similarity_cross_bwd")
    ours, want = (call(module, wide(args), g.double(), h.double(), 3.0) for module in (ops, reference))
    assert all(torch.equal(ours[k], want[k]) for k in want)


def test_groups_and_splits_cover_the_matrix():
    for n, m in ((1, 1), (512, 512), (256, 65536), (20000, 600), (65536, 65536), (1, 1 << 20)):
        config = TileConfig(128, 64, 8, 3)
        groups, rows, splits, columns = pick_groups(n, m, config, 132)
        assert groups <= 32 and rows % config.block_m == 0 and columns % config.block_n == 0
        assert (groups - 1) * rows < n <= groups * rows and (splits - 1) * columns < m <= splits * columns


def test_splits_cover_the_columns():
    for n, m in ((1, 1), (512, 512), (256, 65536), (20000, 600), (65536, 65536), (1, 1 << 20)):
        config = TileConfig(128, 64, 8, 3)
        splits, length = pick_splits(n, m, config, 132)
        assert length % config.block_n == 0 and (splits - 1) * length < m <= splits * length
    assert pick_splits(65536, 65536, TileConfig(128, 64, 8, 3), 132)[0] == 1
    assert pick_splits(256, 65536, TileConfig(128, 64, 8, 3), 132)[0] == 64


def test_chunks_stay_in_the_cache():
    for n, m in ((1, 1), (256, 65536), (65536, 65536), (65536, 128), (1000, 10**7), (10**7, 1), (1 << 22, 4)):
        r, c = chunk_shape(n, m)
        assert 1 <= r <= n and 1 <= c <= m and r * c <= 1 << 23
        assert triton.cdiv(r, 32) <= 65535, "a grid's second dimension is 65,535 at most"


@pytest.mark.parametrize("splits", [1, 2], ids=["folded", "merged"])
def test_no_logit_under_no_maximum_is_no_maximum_of_0(tiles, splits):
    """Logits of the first rows are proved small, and all excluded in column 0; those of the others are far below 0."""
    tiles(splits=splits if splits > 1 else None)
    args, g, h = cross(64, 16, 8, counted=False)
    ids = torch.zeros(64, dtype=torch.int64)
    ids[32:] = 1
    args |= {"x_id": ids, "y_id": torch.tensor([0] + [2] * 15)}
    args["x"][:32] *= 1e-3
    args["x"][32:] = 0.0
    args["x"][32:, 0], args["y"][0] = -30.0, 30.0 * torch.eye(8)[0]
    assert check(args, g, h, 1.0)["column"].isfinite().all()
