"""Edges of similarity_lse that are its own: registration, exclusion, extremes of the logits, the queue, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import clip_loss, nt_xent, siglip_loss, similarity_lse
from fastssl.ops import normalize, similarity
from fastssl.ops._register import _C
from fastssl.reference import normalize as normalize_reference
from fastssl.reference import similarity as reference
from fastssl.testing.compare import assert_no_worse, relative_error
from fastssl.testing.similarities import eager_lse


def rows(n, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


def op_arguments(symmetric, n=9, m=7, d=5, dtype=torch.float32):
    x, y = rows(n, d, dtype), None if symmetric else rows(m, d, dtype)
    columns = n if symmetric else m
    return x, y, 2.0, torch.tensor(3.0), torch.arange(n) % 3, torch.arange(columns) % 3, torch.randn(columns)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "row-strided"])
def test_opcheck(symmetric, layout):
    x, y, *rest = op_arguments(symmetric)
    if layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "row-strided":
        x = torch.cat([x, x], 1)[:, :5]
    arguments = (x, y, *rest)
    state, peak = similarity._fwd(*arguments, None)[2:]
    for threshold in (None, torch.randn(len(x))):
        torch.library.opcheck(similarity._fwd, (*arguments, threshold))
        torch.library.opcheck(similarity._one_pass, (*arguments, threshold))
    for need in ((True,) * 4, (True, False, False, False), (False, True, True, True)):
        torch.library.opcheck(similarity._bwd, (torch.randn(len(x)), state, peak, *arguments, need))
    a, b = rows(4, 3), rows(4, 3)
    torch.library.opcheck(normalize._fwd, (a, b, 1e-12))
    z, norm, _ = normalize._fwd(a, b, 1e-12)
    torch.library.opcheck(normalize._bwd, (torch.randn(8, 3), torch.randn(4), z, norm, 1e-12))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", [2.0, 40.0])  # logits within and beyond what is proved bounded
def test_every_gradient_asked_for_alone_equals_the_reference(symmetric, scale, isa):
    arguments = list(op_arguments(symmetric, 70, 90, 33))
    arguments[2] = scale
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    threshold = torch.randn(70)
    lse, rank, *state = similarity._fwd(*arguments, threshold)
    want_lse, want_rank, *want_state = reference.similarity_fwd(*wide, threshold)
    assert torch.equal(rank, want_rank)
    assert relative_error(lse, want_lse) < 1e-6
    g = torch.randn(70)
    want = reference.similarity_bwd(g.double(), *want_state, *wide, (True,) * 4)
    for k in range(4):
        need = tuple(j == k for j in range(4))
        got = similarity._bwd(g, *state, *arguments, need)
        assert [t.numel() > 0 for t in got] == [j == k and want[j].numel() > 0 for j in range(4)]
        assert relative_error(got[k], want[k]) < 2e-5
    mean_lse, mean, rank = similarity._one_pass(*arguments, threshold)
    assert relative_error(mean_lse, want_lse) < 1e-6 and torch.equal(rank, want_rank)
    assert relative_error(mean, reference.similarity_one_pass(*wide, None)[1]) < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_float32_rows_may_be_multiplied_in_16_bits(symmetric, dtype):
    """The gradient is that of the 16-bit rows before it is rounded, and a second derivative is refused."""
    x, y = torch.randn(12, 9).to(dtype), torch.randn(20, 9).to(dtype)

    def gradients(x, y, **how):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        lse, _ = similarity.similarity_lse_rank(x, x if symmetric else y, scale=2.0, **how)
        return torch.autograd.grad(lse.sum(), [x] if symmetric else [x, y], create_graph=True)

    wide = gradients(x.float(), y.float(), products=dtype)
    assert all(grad.dtype == torch.float32 and not torch.equal(grad, grad.to(dtype).float()) for grad in wide)
    assert all(map(torch.equal, (grad.to(dtype) for grad in wide), gradients(x, y)))
    with pytest.raises(NotImplementedError, match="second derivatives"):
        wide[0].sum().backward()


def test_normalize_pair_equals_the_reference(isa):
    a, b = torch.randn(33, 17), torch.randn(33, 17)
    b[3] = 0  # a clamped norm
    for got, want in zip(normalize._fwd(a, b, 1e-12), normalize_reference.normalize_pair_fwd(a, b, 1e-12), strict=True):
        torch.testing.assert_close(got, want)
    z, norm, _ = normalize._fwd(a, b, 1e-12)
    dz, ddot = torch.randn(66, 17), torch.randn(33)
    want = normalize_reference.normalize_pair_bwd(dz, ddot, z, norm, 1e-12)
    for got, wanted in zip(normalize._bwd(dz, ddot, z, norm, 1e-12), want, strict=True):
        torch.testing.assert_close(got, wanted)


def test_without_ids_nothing_is_excluded():
    x = rows(6, 4)
    torch.testing.assert_close(similarity_lse(x, x), torch.logsumexp(x @ x.T, 1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_ids_of_every_integer_dtype(dtype):
    x, y = rows(40, 8), rows(30, 8)
    x_id, y_id = torch.randint(0, 5, (40,)), torch.randint(0, 5, (30,))
    got = similarity_lse(x, y, x_id=x_id.to(dtype), y_id=y_id.to(dtype), scale=3.0)
    torch.testing.assert_close(got, eager_lse(x, y, 3.0, x_id, y_id))


def test_ids_that_differ_only_beyond_32_bits():
    x = rows(40, 8)
    ids = torch.arange(40) % 4 * (1 << 32) - (1 << 60)
    torch.testing.assert_close(similarity_lse(x, x, x_id=ids), eager_lse(x, x, 1.0, ids, ids))


@pytest.mark.parametrize("scale", [1.0, 500.0])
@pytest.mark.parametrize("grad_of_y", [True, False])
def test_a_row_with_every_column_excluded(scale, grad_of_y):
    x, y = rows(5, 4).requires_grad_(), rows(3, 4).requires_grad_(grad_of_y)
    x_id, y_id = torch.tensor([7, 0, 0, 0, 0]), torch.tensor([7, 7, 7])
    lse = similarity_lse(x, y, scale=scale, x_id=x_id, y_id=y_id)
    assert lse[0] == -math.inf and lse[1:].isfinite().all()
    F.softplus(lse).sum().backward()
    assert x.grad[0].eq(0).all() and x.grad[1:].ne(0).any() and not x.grad.isnan().any()
    x.grad = None
    everything = torch.zeros(5, dtype=torch.int64)
    lse = similarity_lse(x, x, scale=scale, x_id=everything)
    F.softplus(lse).sum().backward()
    assert lse.eq(-math.inf).all() and x.grad.eq(0).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("scale", [-50.0, 0.0, 1.0, 100.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_any_norm_and_any_scale(size, scale, symmetric, products, isa):
    x = (size * torch.randn(150, 20)).requires_grad_()
    y = x if symmetric else (size * torch.randn(170, 20)).requires_grad_()
    ids = {"x_id": torch.arange(150), "y_id": torch.arange(len(y)) % 150} if not symmetric else {"x_id": torch.arange(150) % 75}

    def run(f, x, y):
        kwargs = ids if f is similarity_lse else {"x_id": ids["x_id"], "y_id": ids.get("y_id", ids["x_id"])}
        lse = f(x, y, scale=scale, **kwargs)
        return [lse, *torch.autograd.grad(lse.sum(), [x] if x is y else [x, y])]

    def double():
        wide = x.detach().double().requires_grad_()
        return run(eager_lse, wide, wide if symmetric else y.detach().double().requires_grad_())

    for name, got, eager, truth in zip(
        ["lse", "dx", "dy"], run(similarity_lse, x, y), run(eager_lse, x, y), double(), strict=False
    ):
        assert_no_worse(name, got, eager, truth, torch.float32)


def test_scale_zero_has_its_gradient():
    x, y = rows(6, 4), rows(8, 4)
    for columns in (x, y):
        scale = torch.zeros((), requires_grad=True)
        want = torch.zeros((), requires_grad=True)
        similarity_lse(x, columns, scale=scale).sum().backward()
        torch.logsumexp(want * x @ columns.T, 1).sum().backward()
        torch.testing.assert_close(scale.grad, want.grad)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_tensor_of_one_element_keeps_its_shape_and_dtype(shape):
    x, y = rows(6, 4).requires_grad_(), rows(8, 4).requires_grad_()
    scale = torch.full(shape, 3.0, dtype=torch.bfloat16, requires_grad=True)
    similarity_lse(x, y, scale=scale).sum().backward()
    assert scale.grad.shape == shape and scale.grad.dtype == torch.bfloat16


def test_nan_in_nan_out():
    x = rows(40, 8)
    x[3, 2] = math.nan
    lse = similarity_lse(x, x, x_id=torch.arange(40))
    assert lse.isnan().all()


def test_the_columns_may_be_overwritten_before_the_backward():
    x, queue = rows(40, 8).requires_grad_(), rows(300, 8)
    (want,) = torch.autograd.grad(eager_lse(x, queue.clone(), 10.0).sum(), x)
    lse = similarity_lse(x, queue, scale=10.0)
    queue.fill_(math.nan)
    lse.sum().backward()
    torch.testing.assert_close(x.grad, want)


def test_a_frozen_column_side_keeps_nothing_of_it():
    x, queue = rows(4, 8).requires_grad_(), rows(300, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        similarity_lse(x, queue, scale=10.0)
    assert max(t.numel() for t in saved) <= x.numel()


def test_shapes_beyond_32_bits_on_the_meta_device():
    x = torch.empty(1 << 26, 64, device="meta", requires_grad=True)  # 2^32 elements
    lse = similarity_lse(x, x, x_id=torch.empty(1 << 26, dtype=torch.int64, device="meta"))
    assert lse.shape == (1 << 26,) and lse.device.type == "meta"
    (grad,) = torch.autograd.grad(lse.sum(), x)
    assert grad.shape == x.shape


def test_threads_do_not_change_the_value():
    x = rows(700, 16)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        z = x.clone().requires_grad_()
        lse = similarity_lse(z, z, x_id=torch.arange(700), scale=5.0)
        results.append((lse.detach(), torch.autograd.grad(lse.sum(), z)[0]))
    torch.set_num_threads(before)
    for lse, grad in results[1:]:
        torch.testing.assert_close(lse, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


X, Y = torch.randn(4, 3), torch.randn(5, 3)
BAD = {
    "not a tensor": (TypeError, "x must be a tensor", lambda: similarity_lse([1.0], Y)),
    "integer x": (TypeError, "x must be float32.*got torch.int64", lambda: similarity_lse(X.long(), Y)),
    "one dimension": (ValueError, r"y must be 2-D \(M, D\), got shape \(15,\)", lambda: similarity_lse(X, Y.flatten())),
    "no rows": (ValueError, r"x must have at least one row.*\(0, 3\)", lambda: similarity_lse(X[:0], Y)),
    "no columns": (
        ValueError,
        r"x must have at least one row and one column.*\(4, 0\)",
        lambda: similarity_lse(X[:, :0], Y[:, :0]),
    ),
    "widths differ": (ValueError, r"same width D, got \(4, 3\) and \(5, 2\)", lambda: similarity_lse(X, Y[:, :2])),
    "dtypes differ": (TypeError, "same dtype, got torch.float32 and torch.float64", lambda: similarity_lse(X, Y.double())),
    "devices differ": (ValueError, "same device, got cpu and meta", lambda: similarity_lse(X, Y.to("meta"))),
    "NaN scale": (ValueError, "scale must be finite, got nan", lambda: similarity_lse(X, Y, scale=math.nan)),
    "NaN scale tensor": (ValueError, "scale must be finite, got nan", lambda: similarity_lse(X, Y, scale=torch.tensor(math.nan))),
    "scale of two": (ValueError, "one-element float tensor", lambda: similarity_lse(X, Y, scale=torch.ones(2))),
    "scale as text": (TypeError, "scale must be a number.*got str", lambda: similarity_lse(X, Y, scale="1")),
    "short ids": (
        ValueError,
        r"x_id must have shape \(4,\).*got \(3,\)",
        lambda: similarity_lse(X, Y, x_id=torch.arange(3), y_id=torch.arange(5)),
    ),
    "float ids": (
        TypeError,
        "y_id must have an integer dtype",
        lambda: similarity_lse(X, Y, x_id=torch.arange(4), y_id=torch.rand(5)),
    ),
    "one id": (ValueError, "x_id was given without y_id", lambda: similarity_lse(X, Y, x_id=torch.arange(4))),
    "ids of columns alone": (ValueError, "y_id was given without x_id", lambda: similarity_lse(X, X, y_id=torch.arange(4))),
    "ids elsewhere": (ValueError, "same device", lambda: similarity_lse(X, X, x_id=torch.arange(4, device="meta"))),
    "bias shape": (ValueError, r"y_bias must have shape \(5,\)", lambda: similarity_lse(X, Y, y_bias=torch.zeros(4))),
    "integer bias": (TypeError, "y_bias must have a float dtype", lambda: similarity_lse(X, Y, y_bias=torch.zeros(5).long())),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name):
    error, words, call = BAD[name]
    with pytest.raises(error, match="similarity_lse: .*" + words):
        call()


@pytest.fixture
def brgemm():
    """What it gives chooses who multiplies bfloat16: oneDNN, as on a CPU with matrix units, or our own code."""
    if _C is None or "avx512_bf16" not in _C.isas():
        pytest.skip("no products of bfloat16 on this machine")
    before = _C.uses_brgemm()
    yield _C.use_brgemm
    _C.use_brgemm(before)


@pytest.mark.parametrize("shape", [(1, 1), (37, 19), (300, 130)])
@pytest.mark.parametrize("scale", [2.0, 60.0], ids=["bounded", "online"])
def test_bfloat16_by_onednn_and_by_our_own_code_agree(brgemm, shape, scale):
    """Both add exact products in float32, so that they differ by the order of the sums and by what that moves a rounded weight."""
    B, D = shape
    made = [rows(n, D, torch.bfloat16) for n in (B, B, 2 * B + 3)]

    def run(on: bool) -> list[torch.Tensor]:
        brgemm(on)
        x, y, queue = (each.clone().requires_grad_() for each in made)
        z = torch.cat([x, y])
        lse = similarity_lse(z, z, scale=scale).sum() + similarity_lse(x, queue.detach(), scale=scale).sum()
        losses = nt_xent(x, y, 1 / scale), clip_loss(x, y, scale), siglip_loss(x, y, scale, -scale)
        (lse + sum(losses)).backward()
        return [lse.detach(), *(loss.detach() for loss in losses), x.grad.float(), y.grad.float()]

    for ours, theirs in zip(run(False), run(True), strict=True):
        unit = 2**-7 if ours.dim() else 1e-6  # gradients are rounded to bfloat16, losses are not
        torch.testing.assert_close(ours, theirs, rtol=unit, atol=2**-10 * float(ours.abs().max()) * ours.dim() + 1e-6)
