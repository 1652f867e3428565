"""The Triton kernels of ``sigmoid_pair`` in Triton's interpreter. Run with TRITON_INTERPRET=1;
``python -m tests.races`` in ttsem."""

import functools

import numpy as np
import pytest
import torch
import triton
from torch import Tensor
from triton.runtime import interpreter

import fastssl.ops.sigmoid_pair as op
from fastssl.kernels import sigmoid_pair as kernels
from fastssl.kernels import sigmoid_pair_chunked as chunked
from fastssl.kernels import sigmoid_pair_terms as terms
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig
from fastssl.ops._register import launcher
from fastssl.reference import sigmoid_pair as reference
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.fixtures import INTERPRETED

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ALL = (True, True, True, True)
NAMES = ("loss", "dx", "dy", "dscale", "dbias")


@pytest.fixture(autouse=True)
def reductions_by_column(monkeypatch):
    """The interpreter calls a combine function for every element; it takes arrays as well."""
    if not INTERPRETED:
        return

    def reduced(self, tensors):
        (t,) = tensors
        columns = np.moveaxis(t.handle.data, self.axis, 0)
        return [self.to_tensor(functools.reduce(self.combine_fn.fn, columns), t.dtype)]

    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", reduced)


@pytest.fixture
def tiles(monkeypatch):
    """Small tiles, so that small shapes have many; and a given number of splits."""

    def use(block_m=16, block_n=16, splits=None):
        monkeypatch.setattr(plan, "pick_config", lambda *args: TileConfig(block_m, block_n, 4, 2))
        if splits is not None:

            def pick(rows, columns, *_):
                length = triton.cdiv(triton.cdiv(columns, block_n), splits) * block_n
                return triton.cdiv(columns, length), length

            monkeypatch.setattr(kernels, "pick_splits", pick)

    return use


@pytest.fixture
def chunks(monkeypatch):
    """Small chunks, and more than one program in a row of them."""
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, 8), min(m, 40)))
    monkeypatch.setattr(chunked, "_SPAN", 32)


def make(n, m, d, dtype=F32, ids="rows", weights=None, factor=False, term=False, unit=True, seed=0):
    """ids: "rows" (i is j), "repeats", "same" (all equal), "none" (all different)."""
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=gen)  # noqa: E731
    rows = lambda k: torch.nn.functional.normalize(rand(k, d), dim=1) if unit else 3.0 * rand(k, d)  # noqa: E731
    x, y = rows(n).to(dtype), rows(m).to(dtype)
    x_id, y_id = torch.arange(n), torch.arange(m)
    if ids == "repeats":
        x_id, y_id = x_id % 7 - 3 + (1 << 40), y_id % 5 - 3 + (1 << 40)
    elif ids == "same":
        x_id, y_id = torch.zeros(n, dtype=torch.int32), torch.zeros(m, dtype=torch.int32)
    elif ids == "none":
        x_id, y_id = x_id.neg() - 1, y_id
    return {
        "x": x, "y": y, "scale": 10.0, "scale_factor": torch.tensor([1.3]) if factor else None, "bias": -5.0,
        "bias_term": torch.tensor(-1.5) if term else None, "x_id": x_id, "y_id": y_id,
        "x_weight": torch.rand(n, generator=gen).to(weights) if weights else None,
        "y_weight": torch.rand(m, generator=gen).to(weights) if weights else None,
    }  # fmt: skip


def wide(args):
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in args.items()}


def sizes(args) -> dict[str, float]:
    """What one unit of rounding in each logit, of the size scale |x_i| |y_j|, does to each gradient; and for dscale, whose terms
    w <x, y> have both signs, to their sum."""
    args = wide(args)
    x, y = args["x"], args["y"]
    s = x @ y.T
    scale = args["scale"] * (1.0 if args["scale_factor"] is None else args["scale_factor"])
    u = -(scale * s + args["bias"] + (0.0 if args["bias_term"] is None else args["bias_term"]))
    positive = args["x_id"][:, None] == args["y_id"][None, :]
    v = 1.0 if args["x_weight"] is None else args["x_weight"][:, None] + args["y_weight"][None, :]
    w = torch.where(positive, v * torch.sigmoid(u), torch.sigmoid(-u))
    slope = torch.where(positive, torch.as_tensor(v), 1.0) * torch.sigmoid(u) * torch.sigmoid(-u)
    length = x.norm(dim=1)[:, None] * y.norm(dim=1)
    moved = slope * length * abs(float(scale))
    return {
        "dx": float(scale) * (moved @ y.abs()).norm(),
        "dy": float(scale) * (moved.T @ x.abs()).norm(),
        "dscale": ((w + moved) * length).sum(),
        "dbias": moved.sum(),
    }


def check(args, need=ALL) -> dict[str, Tensor]:
    ours = dict(zip(NAMES, kernels.sigmoid_pair(*args.values(), need), strict=True))
    plain = dict(zip(NAMES, reference.sigmoid_pair(*args.values(), need), strict=True))
    truth = dict(zip(NAMES, reference.sigmoid_pair(*wide(args).values(), need), strict=True))
    size = {name: abs(float(value)) for name, value in sizes(args).items()}
    for name, value in ours.items():
        assert value.shape == plain[name].shape and value.dtype == plain[name].dtype and value.is_contiguous(), name
        dtype = F32 if name in ("loss", "dbias") else args["x"].dtype  # no sum of these is rounded to 16 bits
        units = torch.finfo(torch.float32).eps / torch.finfo(dtype).eps  # logits are rounded in float32
        assert_no_worse(name, value, plain[name], truth[name], dtype, units * size.get(name, 0.0))
    return ours


SHAPES = [(1, 1, 1), (1, 40, 3), (40, 1, 33), (33, 50, 16), (70, 45, 130)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_shapes(tiles, shape, splits):
    tiles(splits=splits)
    check(make(*shape, ids="repeats", factor=True, term=True))
    check(make(*shape))


@pytest.mark.parametrize("ids", ["rows", "repeats", "same", "none"])
@pytest.mark.parametrize("weights", [None, F32, BF16, torch.float64], ids=str)
@pytest.mark.parametrize("d", [24, 260])
def test_ids_and_weights(tiles, chunks, ids, weights, d):
    tiles(splits=2)
    check(make(21, 50, d, ids=ids, weights=weights, term=True))


def test_positives_of_shuffled_rows(tiles):
    """A tile in the middle of a range of ids holds positives, tiles beside it do not."""
    tiles()
    args = make(64, 80, 8)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    shuffled = dict(args, y=args["y"][order], y_id=args["y_id"][order])
    a, b = check(args), check(shuffled)
    assert torch.allclose(a["dy"][order], b["dy"], atol=1e-5) and torch.allclose(a["loss"], b["loss"])


@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.uint8), (torch.int8, torch.int64), (torch.int32, torch.int16)], ids=str)
@pytest.mark.parametrize("d", [8, 260])
def test_types_of_ids(tiles, chunks, dtypes, d):
    tiles()
    args = make(20, 33, d)
    check(dict(args, x_id=args["x_id"].to(dtypes[0]), y_id=args["y_id"].to(dtypes[1])))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("weights", [None, F32], ids=["", "weights"])
@pytest.mark.parametrize("d", [24, 257])
@pytest.mark.parametrize("scale", [100.0, -20.0])
def test_types_and_temperatures(tiles, chunks, dtype, weights, d, scale):
    tiles(splits=2)
    check(dict(make(19, 21, d, dtype, weights=weights, factor=True), scale=scale))


@pytest.mark.parametrize("need", [tuple(bool(k >> i & 1) for i in range(4)) for k in range(16)], ids=str)
@pytest.mark.parametrize("d", [8, 260])
def test_only_what_is_needed(tiles, chunks, need, d):
    tiles(splits=2)
    ours = check(make(11, 37, d, weights=F32, factor=True, term=True), need)
    assert [ours[name].numel() > 0 for name in NAMES[1:]] == list(need)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("ids", ["rows", "none"])
@pytest.mark.parametrize("d", [16, 260])
def test_large_logits(tiles, chunks, dtype, ids, d):
    """Up to 1e4, and of either sign: nothing overflows, whole tiles are worth 0 or |l|."""
    tiles()
    for scale in (1e4, -1e4):
        check(dict(make(11, 40, d, dtype, ids=ids), scale=scale))
    check(dict(make(11, 40, d, dtype, ids=ids, unit=False), scale=50.0))


@pytest.mark.parametrize("d", [16, 260])
def test_zero_and_far_logits(tiles, chunks, d):
    """log 2 for each pair; the scale's gradient at scale 0; and negatives that are all alike, so that roundings add up."""
    tiles(block_n=64)
    m = 130 if d < 100 else 45
    check(dict(make(6, m, d), scale=0.0, bias=0.0))
    for bias, limit in ((-10.0, 1e-6), (-30.0, 3e-6)):  # float32 holds log2(e) 30 to 1.3e-6
        args = dict(make(6, m, d, ids="none"), scale=0.0, bias=bias)
        loss, truth = (module.sigmoid_pair(*a.values(), ALL)[0] for module, a in ((kernels, args), (reference, wide(args))))
        assert abs(float(loss / truth) - 1.0) < limit


@pytest.mark.parametrize("weights", [None, F32], ids=["", "weights"])
def test_float16_weights_do_not_vanish(tiles, chunks, weights):
    """exp(-17) is under float16's smallest number; weights of 1e5 are over its largest."""
    tiles()
    for d in (24, 260):
        args = dict(make(9, 33, d, F16, ids="none", weights=weights), scale=1.0, bias=-17.0)
        check(args)
        if weights:
            big = dict(make(9, 33, d, F16, ids="repeats"), x_weight=args["x_weight"] * 1e5, y_weight=args["y_weight"] * 1e5)
            check(big)


@pytest.mark.parametrize("d", [16, 260])
def test_not_a_number_is_not_hidden(tiles, chunks, d):
    tiles()
    for ids in ("rows", "none"):
        args = make(9, 33, d, ids=ids)
        args["x"][3, 1] = float("nan")
        loss, dx, dy, dscale, dbias = kernels.sigmoid_pair(*args.values(), ALL)
        assert loss.isnan() and dx[3].isnan().all() and dx[4].isfinite().all()
        assert dy.isnan().all() and dscale.isnan() and dbias.isnan()


def test_strided_inputs(tiles):
    tiles()
    base = make(33, 40, 24, weights=F32)
    want = check(base)
    every_other = lambda t: torch.stack([t, t], 1).flatten(0, 1)[::2]  # noqa: E731
    padded = torch.nn.functional.pad(base["x"], (0, 5))[:, :24]
    transposed = base["x"].t().contiguous().t()
    assert not (padded.is_contiguous() or transposed.is_contiguous())
    moved = {k: every_other(base[k]) for k in ("y", "x_id", "y_id", "x_weight", "y_weight")}
    for rows in (padded, transposed):
        got = check(base | moved | {"x": rows})
        assert all(torch.equal(got[k], want[k]) for k in want)
    check(dict(base, x=base["x"][:1].expand(33, 24)))


def test_chunks_agree_with_tiles(tiles, chunks, monkeypatch):
    tiles()
    args = make(20, 45, 24, ids="repeats", weights=F32, factor=True)
    want = check(args)
    monkeypatch.setattr(kernels, "tile_fits", lambda *_: False)
    got = check(args)
    assert all(torch.allclose(got[k], want[k], atol=1e-5) for k in want)


@pytest.mark.parametrize("d", [24, 260])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_same_bits_twice(tiles, chunks, d, dtype):
    tiles(splits=3)
    args = make(17 if d < 100 else 9, 50, d, dtype, ids="repeats", weights=F32)
    first, second = (kernels.sigmoid_pair(*args.values(), ALL) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shipped_configs():
    """The tiles that a Hopper GPU gets."""
    for dtype, n, d in ((BF16, 130, 128), (F32, 35, 40), (F16, 66, 200)):
        check(make(n, n - 5, d, dtype))


def test_float64_falls_back_to_the_reference():
    args = wide(make(6, 5, 4, ids="repeats", weights=F32))
    ours, want = launcher("sigmoid_pair", "sigmoid_pair")(*args.values(), ALL), reference.sigmoid_pair(*args.values(), ALL)
    assert all(torch.equal(a, b) for a, b in zip(ours, want, strict=True))


def test_sums_are_long():
    """16,384 rows: the sum keeps float32's accuracy whatever the order."""
    rows = torch.rand(3, 20000, generator=torch.Generator().manual_seed(0))
    loss, dbias, dscale = (torch.empty(()) for _ in range(3))
    terms.add_up(rows, terms.Sums(loss, dbias, dscale))
    want = rows.double().sum(1).float()
    assert torch.equal(torch.stack([loss, dbias, dscale]), want)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_public_function(tiles, monkeypatch, dtype):
    """Through autograd, with learned scale and bias."""
    tiles()
    monkeypatch.setattr(op, "_op", kernels.sigmoid_pair)
    args = make(20, 33, 24, dtype, ids="repeats")
    leaves = {"x": args["x"], "y": args["y"], "scale": torch.tensor(12.0), "bias": torch.tensor([-4.0])}

    def run(wanted, ids=(args["x_id"], args["y_id"])):
        inputs = {k: v.to(wanted if v.dim() > 1 or wanted == torch.float64 else F32).requires_grad_() for k, v in leaves.items()}
        loss = op.sigmoid_pair(**inputs, x_id=ids[0], y_id=ids[1])
        return [loss, *torch.autograd.grad(3.0 * loss, list(inputs.values()))]

    ours = run(dtype)
    monkeypatch.setattr(op, "_op", reference.sigmoid_pair)
    for name, *three in zip(("loss", *leaves), ours, run(dtype), run(torch.float64), strict=True):
        assert_no_worse(name, *three, dtype)
