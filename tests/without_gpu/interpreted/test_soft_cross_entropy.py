"""The Triton kernels of ``soft_cross_entropy`` in Triton's interpreter. Run with TRITON_INTERPRET=1; ``python -m tests.races`` in
ttsem."""

import pytest
import torch
from torch import Tensor

import fastssl.ops.soft_cross_entropy as op
from fastssl.functional import soft_cross_entropy
from fastssl.kernels import soft_cross_entropy as kernels
from fastssl.kernels import soft_rows
from fastssl.kernels.host import device
from fastssl.kernels.host.device import DeviceProperties
from fastssl.kernels.soft_rows import RowTile
from fastssl.ops._register import launcher
from fastssl.reference import soft_cross_entropy as reference
from fastssl.testing.compare import assert_no_worse

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
K = 20  # columns: with the tiles of these tests two blocks, the second of which is not full
SHIPPED = soft_rows.row_tile


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Blocks of 16 columns, so that few columns make several of them; rows that are split where a test asks for it."""
    few = lambda rows, *_: RowTile(rows, 4, 4, 1)  # noqa: E731

    def use(split=False, row_tile=few):
        for module in (soft_rows, kernels):
            monkeypatch.setattr(module, "row_tile", row_tile)
        monkeypatch.setattr(device, "CPU", DeviceProperties(90, 1))
        if split:
            monkeypatch.setattr(kernels, "_fills", lambda *_: False)

    use()
    return use


def make(crops, teachers, batch, k=K, dtype=F32, groups=0, inner=1, weight=False, size=3.0, **how) -> dict:
    """Arguments of ``soft_cross_entropy_fwd``; groups: rows of the bias."""
    gen = torch.Generator().manual_seed(crops + 10 * batch)
    rand = lambda *shape: torch.randn(*shape, generator=gen)  # noqa: E731
    weights = None
    if weight:
        weights = torch.rand(crops * batch, generator=gen)
        weights[::3] = 0.0
    args = {
        "student": (size * rand(crops * batch, k)).to(dtype), "teacher": (size * rand(teachers * batch, k)).to(dtype),
        "bias": size * rand(groups, k) if groups else None, "weight": weights, "temperatures": torch.tensor([0.1, 0.04]),
        "heads": [k], "batch": batch, "inner": inner, "skip_diagonal": False, "probabilities": False, "gradient": True,
    } | how  # fmt: skip
    if args["probabilities"]:
        args["teacher"] = (args["teacher"].float().softmax(1) * (1.0 + rand(teachers * batch, 1).abs())).to(dtype)
    return args


def wide(args: dict) -> dict:
    return {name: t.double() if isinstance(t, Tensor) else t for name, t in args.items()}


def check(args: dict) -> tuple[Tensor, Tensor]:
    ours = kernels.soft_cross_entropy_fwd(*args.values())
    plain = reference.soft_cross_entropy_fwd(*args.values())
    truth = reference.soft_cross_entropy_fwd(*wide(args).values())
    for name, got, eager, true, dtype in zip(("loss", "gradient"), ours, plain, truth, (F32, args["student"].dtype), strict=True):
        assert got.shape == eager.shape and got.dtype == eager.dtype, name
        if got.numel():
            assert_no_worse(name, got, eager, true, dtype)
    return ours


split = pytest.mark.parametrize("split", [False, True], ids=["one launch", "split"])
HOW = [{}, {"groups": 1}, {"weight": True}, {"probabilities": True}, {"groups": 2, "weight": True}]


@split
@pytest.mark.parametrize("how", HOW, ids=str)
def test_row_with_row(tiles, split, how):
    tiles(split)
    check(make(1, 1, 6, k=70 if split else K, **how))


@pytest.mark.parametrize("crops, teachers", [(5, 2), (2, 2), (3, 1), (1, 3)])
@pytest.mark.parametrize("how", [{}, {"skip_diagonal": True, "groups": 1}, {"probabilities": True, "skip_diagonal": True}], ids=str)
def test_crops(crops, teachers, how):
    check(make(crops, teachers, 2, weight=crops == 5, **how))


@pytest.mark.parametrize("teachers, batch, groups, inner", [(1, 6, 3, 1), (1, 6, 2, 3), (2, 2, 2, 2), (2, 2, 2, 1)])
def test_a_bias_for_each_group_of_rows(teachers, batch, groups, inner):
    check(make(3 if teachers > 1 else 1, teachers, batch, groups=groups, inner=inner))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("how", [{"groups": 1}, {}, {"skip_diagonal": True}], ids=str)
def test_half(dtype, how):
    check(make(3, 2, 3, dtype=dtype, **how) if "skip_diagonal" in how else make(1, 1, 4, dtype=dtype, **how))


@pytest.mark.parametrize("dtypes", [(BF16, F32), (F32, F16)], ids=str)
def test_a_teacher_of_another_dtype(dtypes):
    args = make(1, 1, 4, groups=1)
    check(args | {"student": args["student"].to(dtypes[0]), "teacher": args["teacher"].to(dtypes[1])})


@pytest.mark.parametrize("heads", [[1, 3, 16], [19, 1]], ids=str)
@pytest.mark.parametrize("crops", [1, 2])
def test_heads(heads, crops):
    check(make(crops, crops, 2, heads=heads, groups=1, weight=True))
    check(make(crops, crops, 2, heads=heads, probabilities=True, skip_diagonal=crops > 1))


@pytest.mark.parametrize("crops", [1, 2])
def test_only_the_loss(crops):
    args = make(crops, crops, 2, groups=1)
    loss, gradient = check(args | {"gradient": False})
    assert gradient.shape == (0,) and torch.equal(loss, check(args)[0])


@pytest.mark.parametrize("size", [100.0, 1e-3])
@pytest.mark.parametrize("crops", [1, 2])
def test_large_and_small_logits(size, crops):
    """At logits of 100 and T = 0.04 each softmax is one column, and at nearly equal ones the loss is that of a uniform target. A
    potential as large as the logits cancels them."""
    args = make(crops, crops, 2, size=size)
    check(args)
    check(args | {"bias": -args["teacher"][:1] + 0.1})
    check(args | {"student": args["teacher"], "temperatures": torch.tensor([0.04, 0.04])})


def test_logits_of_minus_infinity():
    """Columns that a side leaves out have probability 0 there; a row of nothing else is not a number."""
    args = make(1, 1, 4, groups=1)
    args["teacher"][:, 5:9] = -torch.inf
    args["teacher"][2, :17] = -torch.inf
    check(args)
    args["teacher"][3] = -torch.inf
    loss, gradient = kernels.soft_cross_entropy_fwd(*args.values())
    assert loss.isnan().tolist() == gradient.isnan().any(1).tolist() == [row == 3 for row in range(4)]


@split
def test_not_a_number_stays_in_its_row(tiles, split):
    tiles(split)
    args = make(1, 1, 4, k=70, groups=1)
    args["student"][0, 50], args["teacher"][2, 1] = torch.nan, torch.nan
    loss, gradient = kernels.soft_cross_entropy_fwd(*args.values())
    assert loss.isnan().nonzero().flatten().tolist() == [0, 2]
    assert gradient[[0, 2]].isnan().all() and gradient[1].isfinite().all() and gradient[3:].isfinite().all()


@pytest.mark.parametrize("crops", [1, 3])
def test_rows_of_weight_zero_are_not_read(crops):
    args = make(crops, crops, 4, groups=1)
    none = torch.zeros(4 * crops)
    none[1] = 2.0
    args["student"][none == 0] = torch.nan
    loss, gradient = kernels.soft_cross_entropy_fwd(*(args | {"weight": none}).values())
    assert torch.equal(loss != 0, none != 0) and torch.equal((gradient != 0).any(1), none != 0)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("how", [{"batch": 5}, {"batch": 5, "heads": [12, 8]}, {"crops": 3, "batch": 2}], ids=str)
def test_in_place(how):
    """The bits of the gradient of its own, over the logits, in rows of weight 0 too."""
    how = dict(how)
    crops = how.pop("crops", 1)
    args = make(crops, crops, how.pop("batch"), weight=True, groups=1, **how)
    loss, gradient = kernels.soft_cross_entropy_fwd(*args.values())
    student = args.pop("student").clone()
    args.pop("gradient")
    assert torch.equal(kernels.soft_cross_entropy_in_place(student, *args.values()), loss)
    assert torch.equal(student, gradient)


def test_strided_rows():
    args = make(1, 1, 6, groups=3)
    want = check(args)
    padded = {name: torch.nn.functional.pad(args[name], (0, 5))[:, :K] for name in ("student", "teacher")}
    columns = {name: args[name].t().contiguous().t() for name in ("student", "teacher", "bias")}
    for moved in (padded, columns):
        assert not moved["student"].is_contiguous()
        assert all(map(torch.equal, check(args | moved), want))


@pytest.mark.parametrize("crops", [1, 3])
def test_same_bits_twice(tiles, crops):
    tiles(split=True)
    args = make(crops, crops, 2, k=70, groups=1)
    first, second = (kernels.soft_cross_entropy_fwd(*args.values()) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("k", [K, 200])
def test_rows_are_scaled(dtype, k):
    """By a number of each row or one of all; where it is 1, the row is left as it is."""
    gradient = torch.randn(5, k, generator=torch.Generator().manual_seed(0)).to(dtype)
    for upstream in (torch.tensor([1.0, 0.5, -3.0, 0.0, 1.0]), torch.tensor(0.3), torch.tensor([7.0]).expand(5)):
        got, want = gradient.clone(), gradient.clone()
        kernels.soft_cross_entropy_scale(got, upstream)
        reference.soft_cross_entropy_scale(want, upstream)
        torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=0)  # the interpreter cuts bfloat16 off
        assert torch.equal(got[0], gradient[0]) or upstream.unique().numel() == 1
    column = gradient.t().contiguous().t()
    kernels.soft_cross_entropy_scale(column, upstream)
    assert torch.equal(column, got)


def test_no_rows():
    args = make(1, 1, 0)
    loss, gradient = kernels.soft_cross_entropy_fwd(*args.values())
    assert loss.shape == (0,) and gradient.shape == (0, K)
    kernels.soft_cross_entropy_scale(gradient, torch.ones(()))


@pytest.mark.parametrize("shape", [(3, 3000), (9, 10), (1, 9000), (2, 1)], ids=str)
def test_shipped_tiles(tiles, shape):
    tiles(row_tile=SHIPPED)
    check(make(1, 1, shape[0], k=shape[1], dtype=BF16, groups=1))
    check(make(1, 1, shape[0], k=shape[1]))


def test_tiles_have_a_lane_for_each_thread():
    for rows in (1, 2, 4):
        for width in (1, 5, 100, 3000, 70000):
            for of_16_bits in (True, False):
                for elements, warps in ((32, 8), (16, 8), (16, 16)):
                    tile = SHIPPED(rows, width, of_16_bits, elements, warps)
                    assert tile.lanes >= 32 * tile.warps


def test_float64_falls_back_to_the_reference():
    args = wide(make(1, 1, 6, groups=1))
    ours = launcher("soft_cross_entropy", "soft_cross_entropy_fwd")(*args.values())
    assert all(map(torch.equal, ours, reference.soft_cross_entropy_fwd(*args.values())))


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_public_function(monkeypatch, dtype, in_place):
    """Through autograd, as DINO calls it; the mean's 1 / count reaches the gradient."""

    def run(module, wanted):
        for name in ("fwd", "in_place", "scale"):
            monkeypatch.setattr(op, f"_{name}", getattr(module, f"soft_cross_entropy_{name}"))
        args = make(3, 2, 3)
        student = args["student"].to(dtype).to(wanted).view(3, 3, K).requires_grad_()
        teacher = args["teacher"].to(dtype).to(wanted).view(2, 3, K)
        loss = soft_cross_entropy(student * 1.0, teacher, center=teacher.mean((0, 1)), ignore_diagonal=True, in_place=in_place)
        return loss.detach(), *torch.autograd.grad(3.0 * loss, student)

    runs = run(kernels, dtype), run(reference, dtype), run(reference, torch.float64)
    for name, ours, eager, truth in zip(("loss", "gradient"), *runs, strict=True):
        assert_no_worse(name, ours, eager, truth, dtype)
