"""The Triton kernels in Triton's interpreter, on the CPU. The interpreter is chosen by TRITON_INTERPRET=1 when Triton is first
imported, and stays for good, so these tests are a run of their own, the second of ``make test``. ``python -m tests.races`` runs
the same cases with ttsem in its place, which needs none of the interpreter's mends."""

import os
import sys
import types

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

import fastssl.functional as functional
import fastssl.ops.normalize as normalize_op
import fastssl.ops.sigmoid_pair as sigmoid_op
import fastssl.ops.similarity as similarity_op
import fastssl.ops.similarity_cross as cross_op
import fastssl.ops.softplus_sum as softplus_op
from fastssl.kernels import normalize as normalize_kernels
from fastssl.kernels import sigmoid_pair as sigmoid_kernels
from fastssl.kernels import similarity as kernels
from fastssl.kernels import similarity_chunked as chunked
from fastssl.kernels import similarity_cross as cross_kernels
from fastssl.kernels import softplus_sum as softplus_kernels
from fastssl.kernels.host import tensors
from fastssl.kernels.tiles.config import WIDEST, TileConfig
from fastssl.kernels.tiles.row_bounds import row_bounds
from fastssl.reference import normalize as normalize_reference
from fastssl.reference import similarity as reference
from fastssl.reference import softplus_sum as softplus_reference
from fastssl.testing.cases import CASES
from fastssl.testing.compare import assert_no_worse

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
assert INTERPRETED or "ttsem" in sys.modules, "run it with TRITON_INTERPRET=1, or as python -m tests.races"

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ALL = (True, True, True, True)


def product_of_float32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a b (m, n) of float32, the same bits wherever an entry lies and in whatever shape, as a GPU's FMA units give it, which
    add up along k one by one. NumPy's order depends on CPU and shape, which EXACT tiles need not bear."""
    return (c + np.matmul(a, b, dtype=np.float64)).astype(np.float32)


@pytest.fixture(autouse=True)
def dots(monkeypatch):
    """Triton 3.6's interpreter keeps bfloat16 as uint16, and multiplies those integers in tl.dot: widen them first. Those of
    float32 have the same bits in every shape."""
    if not INTERPRETED:
        return
    dot = interpreter.InterpreterBuilder.create_dot

    def as_on_a_gpu(self, a, b, c, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.cast_impl(t, tl.float32) for t in (a, b))
        elif a.dtype.scalar == tl.float32:
            return interpreter.TensorHandle(product_of_float32(a.data, b.data, c.data), c.dtype.scalar)
        return dot(self, a, b, c, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", as_on_a_gpu)


@pytest.fixture(autouse=True)
def language_once(monkeypatch):
    """Triton 3.6's interpreter replaces its language anew at every call of a function inside a kernel, a third of all time: here it
    does so once a launch, for kernels and for those functions of the language that are Triton code themselves."""
    if not INTERPRETED:
        return
    replace = interpreter._patch_lang
    both = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    monkeypatch.setattr(interpreter, "_patch_lang", lambda fn: replace(both))
    inside = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", inside)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that nobody wrote is NaN, so an element that a kernel forgets shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        t = empty(*args, **kwargs)
        return t.fill_(float("nan") if t.is_floating_point() else -77)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(tensors, "batched", False)


@pytest.fixture
def tiles(monkeypatch):
    """Small tiles, so that small shapes have many; a given number of splits; with or without facts of the columns."""

    def use(block_m=32, block_n=16, splits=None, facts=True):
        for module in (kernels, cross_kernels):
            monkeypatch.setattr(module, "pick_config", lambda *args: TileConfig(block_m, block_n, 4, 2))
            monkeypatch.setattr(module, "pays", lambda rows, columns: facts)
        if splits is not None:

            def pick(rows, columns, *_, block=block_n, parts=splits):
                length = triton.cdiv(triton.cdiv(columns, block), parts) * block
                return triton.cdiv(columns, length), length

            monkeypatch.setattr(kernels, "pick_splits", pick)
            two_groups = lambda rows, columns, *_: (*pick(0, rows, block=block_m, parts=2), *pick(0, columns))  # noqa: E731
            monkeypatch.setattr(cross_kernels, "pick_groups", two_groups)

    return use


@pytest.fixture(params=["", "unlucky"])
def products(request, monkeypatch):
    """The vendor's products of chunks as they come, and each with every result moved by up to one unit in the last place."""
    if request.param:
        mm, gen = chunked._mm, torch.Generator().manual_seed(0)

        def unlucky(a, b):
            s = mm(a, b)
            up, down = torch.randint(0, 2, (2, *s.shape), generator=gen).bool()
            toward = torch.where(up, torch.inf, torch.where(down, -torch.inf, s))
            return torch.nextafter(s, toward)

        monkeypatch.setattr(chunked, "_mm", unlucky)


def make(n, m, d, dtype=F32, unit=True, ids=None, bias=False, factor=False, seed=0):
    """x (n, d), y (m, d) or None where m is None, and the other arguments; ids: None, "third", "all", "rows"."""
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=gen)  # noqa: E731
    rows = lambda k: torch.nn.functional.normalize(rand(k, d), dim=1) if unit else 3.0 * rand(k, d)  # noqa: E731
    x, y = rows(n).to(dtype), None if m is None else rows(m).to(dtype)
    columns = n if m is None else m
    x_id = y_id = None
    if ids == "third":
        x_id, y_id = torch.arange(n) % 3, torch.arange(columns) % 3
    elif ids == "all":
        x_id, y_id = torch.zeros(n, dtype=torch.int32), torch.zeros(columns, dtype=torch.int32)
        x_id[: n // 2] = 1
    elif ids == "pair":
        x_id = y_id = torch.arange(n) % max(1, n // 2) + (1 << 40)
    args = {
        "x": x, "y": y, "scale_factor": torch.tensor([1.7]) if factor else None, "x_id": x_id, "y_id": None if y is None else y_id,
        "y_bias": rand(columns) if bias else None,
    }  # fmt: skip
    return args, torch.rand(n, generator=gen) + 0.1


def call(module, args, g, scale, need=ALL, schedules=("fwd", "one_pass", "bwd")) -> dict[str, Tensor]:
    positional = (args["x"], args["y"], scale, args["scale_factor"], args["x_id"], args["y_id"], args["y_bias"])
    threshold = args.get("threshold")
    out = {}
    if "fwd" in schedules:
        out["lse"], out["rank"], *_ = module.similarity_fwd(*positional, threshold)
    if "one_pass" in schedules:
        out["one_pass_lse"], out["mean"], out["one_pass_rank"] = module.similarity_one_pass(*positional, threshold)
    if "bwd" in schedules:
        names = ("dx", "dy", "dbias", "dscale")
        state = module.similarity_fwd(*positional, None)[2:]
        out |= zip(names, module.similarity_bwd(g, *state, *positional, need), strict=True)
    return out


def wide(args):
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in args.items()}


def dscale_terms(args, g, scale, dim=1) -> float:
    """Norm of g_i p_ij <x_i, y_j> (1 + |s_ij|), what dscale sums: a unit of rounding in s_ij moves each by one unit of that. dscale
    is a single number, so eager's own error, which may be small by luck, says little."""
    x, y, ids, other = (args[name] for name in ("x", "y", "x_id", "y_id"))
    dot = x.double() @ (x if y is None else y).double().T
    s = dot * scale * (1.0 if args["scale_factor"] is None else args["scale_factor"].item())
    if args.get("y_bias") is not None:
        s = s + args["y_bias"].double()
    if ids is not None:
        s = s.masked_fill(ids[:, None] == (ids if other is None else other), float("-inf"))
    weight = g.double().unsqueeze(dim) * s.softmax(dim).nan_to_num()
    return float((weight * dot * (1.0 + s.masked_fill(weight == 0, 0.0).abs())).norm())


def check(args, g, scale=10.0, need=ALL, **kwargs) -> dict[str, Tensor]:
    need = (need[0], need[1] and args["y"] is not None, need[2] and args["y_bias"] is not None, need[3])
    ours = call(kernels, args, g, scale, need, **kwargs)
    plain = call(reference, args, g, scale, need, **kwargs)
    truth = call(reference, wide(args), g.double(), scale, need, **kwargs)
    for name, value in ours.items():
        assert value.shape == plain[name].shape and value.dtype == plain[name].dtype and value.is_contiguous(), name
        if "rank" in name:
            assert torch.equal(value, truth[name]), name
            continue
        size = dscale_terms(args, g, scale) if name == "dscale" and value.numel() else 0.0
        assert_no_worse(name, value, plain[name], truth[name], args["x"].dtype, size)
    return ours


SHAPES = [(1, 1, 1), (1, 70, 3), (70, 1, 33), (33, 50, 16), (70, 45, 130), (5, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_two_sided(tiles, shape, splits):
    tiles(splits=splits, facts=splits == 1)
    check(*make(*shape, ids="third", bias=True, factor=True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (70, 33), (49, 130)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("splits", [1, 2])
def test_symmetric(tiles, shape, bias, splits):
    tiles(splits=splits, facts=splits == 1)
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
def test_facts_of_the_columns_change_nothing(tiles, scale, ids):
    """Logits below the bound take no maximum, tiles far from the diagonal no ids; above the bound, and with ids everywhere, all."""
    args, g = make(70, None, 16, ids=ids)
    with_facts, without = [], []
    for found, facts in ((with_facts, True), (without, False)):
        tiles(splits=2, facts=facts)
        found += check(args, g, scale).values()
    for ours, other in zip(with_facts, without, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_row_facts(dtype, transposed):
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


def random_threshold(n, dtype=F32):
    """With nothing and everything above it, and a NaN."""
    threshold = 4.0 * torch.randn(n, generator=torch.Generator().manual_seed(7))
    threshold[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])[:n]
    return threshold.to(dtype)


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
    assert kernels._streamed(queue.t()).data_ptr() == queue.data_ptr()


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
    monkeypatch.setattr(kernels, "tile_fits", lambda *_: how == "tiles")
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
    monkeypatch.setattr(kernels, "tile_fits", lambda *_: False)
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
    ours, want = call(kernels, args, g.double(), 3.0), call(reference, args, g.double(), 3.0)
    assert all(torch.equal(ours[k], want[k]) for k in want)


@pytest.fixture
def triton_ops(monkeypatch):
    """The public functions on CPU tensors, through the Triton launchers."""
    for op in ("_fwd", "_one_pass", "_bwd"):
        monkeypatch.setattr(similarity_op, op, getattr(kernels, f"similarity{op}"))
    for op in ("_fwd", "_bwd"):
        monkeypatch.setattr(normalize_op, op, getattr(normalize_kernels, f"normalize_pair{op}"))
        monkeypatch.setattr(softplus_op, op, getattr(softplus_kernels, f"softplus_sum{op}"))
        monkeypatch.setattr(cross_op, op, getattr(cross_kernels, f"similarity_cross{op}"))
    monkeypatch.setattr(sigmoid_op, "_op", sigmoid_kernels.sigmoid_pair)


SMALL = {"similarity_symmetric": (30, 30, 24), "similarity_two_sided": (20, 37, 33), "similarity_one_pass": (21, 37, 24)}
SMALL |= {"similarity_cross": (20, 37, 33), "sigmoid_pair": (20, 37, 33)}
NOT_TRITON = ("gather_tokens", "restore_tokens", "embed_visible", "patch_loss")  # CUDA C++
SMALL |= {name: (17, 20) for name in CASES if name not in SMALL and not name.startswith(NOT_TRITON)} | {"dcl": (9, 12)}


def _value_and_gradients(function, inputs):
    inputs = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    value = function(**inputs)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    return {"value": value, **dict(zip(inputs, torch.autograd.grad((value * weight).sum(), inputs.values()), strict=True))}


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_public_functions(triton_ops, tiles, name, dtype):
    if INTERPRETED and dtype == BF16 and name.startswith(("info_nce", "byol")):
        pytest.skip("the interpreter truncates to bfloat16 where a GPU rounds: 0.3 % of each cosine, much of a small loss")
    tiles()
    case = CASES[name]
    inputs = case.inputs(SMALL[name], dtype=dtype)
    ours = _value_and_gradients(case.ours, inputs)
    eager = _value_and_gradients(case.eager, inputs)
    truth = _value_and_gradients(case.eager, {k: v.double() for k, v in inputs.items()})
    for k in ours:
        assert_no_worse(f"{name} {k}", ours[k], eager[k], truth[k], dtype)


def test_small_loss_keeps_its_digits(triton_ops):
    z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    loss, truth = functional.nt_xent(z, z, 0.05), functional.nt_xent(z.double(), z.double(), 0.05)
    assert truth < 1e-2 and abs(float(loss) - float(truth)) <= 1e-5 * float(truth)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (2, 1), (14, 7), (9000, 4500), (4097, 4097), (1800, 600)])
@pytest.mark.parametrize("mean", [True, False])
def test_softplus_sum(rows, count, mean):
    gen = torch.Generator().manual_seed(0)
    lse, positive, g = 30 * torch.randn(rows, generator=gen), 9 * torch.randn(count, generator=gen), torch.tensor(0.7)
    lse[-1] = -torch.inf
    for scale in (3.0, -0.5, 0.0):
        forward, backward = (lse, positive, scale, mean), (g, lse, positive, scale, mean)
        exact = [t.double() if isinstance(t, Tensor) else t for t in backward]
        ours = [softplus_kernels.softplus_sum_fwd(*forward), *softplus_kernels.softplus_sum_bwd(*backward)]
        plain = [softplus_reference.softplus_sum_fwd(*forward), *softplus_reference.softplus_sum_bwd(*backward)]
        truth = [softplus_reference.softplus_sum_fwd(*exact[1:]), *softplus_reference.softplus_sum_bwd(*exact)]
        for name, *three in zip(("total", "dlse", "dpositive"), ours, plain, truth, strict=True):
            assert three[0].dtype == F32 and three[0].shape == three[1].shape
            assert_no_worse(name, *three, F32)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (33, 130), (2, 5000)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_normalize_pair(shape, dtype):
    gen = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=gen).to(dtype) for _ in range(2))
    a[-1] = 0  # a clamped row
    b = b.t().contiguous().t() if shape[0] > 2 else b
    ours = normalize_kernels.normalize_pair_fwd(a, b, 1e-12)
    plain = normalize_reference.normalize_pair_fwd(a, b, 1e-12)
    truth = normalize_reference.normalize_pair_fwd(a.double(), b.double(), 1e-12)
    for name, got, eager, want in zip(("z", "norm", "dot"), ours, plain, truth, strict=True):
        assert got.shape == eager.shape and got.dtype == eager.dtype and got.is_contiguous()
        assert_no_worse(name, got, eager, want, dtype)
    z, norm, _ = plain
    dz = torch.randn(z.shape, generator=gen).to(dtype)
    for ddot in (torch.randn(shape[0], generator=gen), torch.ones(1).expand(shape[0])):
        got = normalize_kernels.normalize_pair_bwd(dz, ddot, z, norm, 1e-12)
        eager = normalize_reference.normalize_pair_bwd(dz, ddot, z, norm, 1e-12)
        want = normalize_reference.normalize_pair_bwd(dz.double(), ddot.double(), z.double(), norm.double(), 1e-12)
        for name, *three in zip(("da", "db"), got, eager, want, strict=True):
            live = slice(None, -1) if name == "da" else slice(None)  # the clamped row is divided by 1e-12
            assert_no_worse(name, *(t[live] for t in three), dtype)
            assert torch.equal(three[0][-1].isfinite(), three[1][-1].isfinite())
