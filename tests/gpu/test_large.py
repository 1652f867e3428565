"""Sizes that a GPU can hold but 32-bit offsets cannot: 2^31 elements and more, and NT-Xent of 131,072 rows.

In the rehearsal the sizes are small. It checks names, arguments and expected values, but no offsets.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import (
    ema_update_,
    gather_tokens,
    mask_ids,
    masked_latent_loss,
    masked_patch_loss,
    nt_xent,
    queue_push_,
    restore_tokens,
    similarity_lse,
)
from fastssl.masking import block_mask, mask_tokens
from fastssl.ops.adamw import adamw_
from fastssl.ops.lars import FORMS, lars_
from fastssl.ops.normalize import normalize_pair
from fastssl.ops.sigmoid_pair import sigmoid_pair
from fastssl.ops.similarity_cross import similarity_cross
from fastssl.testing import masking as eager
from fastssl.testing.compare import FLOOR, assert_no_worse, relative_error
from fastssl.testing.inputs import two_views

pytestmark = [pytest.mark.large, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
HALF = torch.bfloat16


@pytest.fixture
def beyond(on_device):
    return on_device(2**31, 2**15)


# --- losses -------------------------------------------------------------------------------------------------------------------


def chunked_lse(z, scale, rows=1024):
    """z (N, D) -> log-sum-exp (N,) of each row's similarities to the others."""
    parts = []
    for start in range(0, len(z), rows):
        s = scale * (z[start : start + rows] @ z.T).double()
        s[torch.arange(len(s)), torch.arange(start, start + len(s))] = -math.inf
        parts.append(torch.logsumexp(s, 1))
    return torch.cat(parts)


def some_gradients(views, lse, rows, temperature):
    """The gradient of NT-Xent for the chosen rows of both views, in their dtype, from the log-sum-exp of all rows."""
    norms = torch.cat(views).norm(dim=1, keepdim=True)
    z = torch.cat(views) / norms
    half = len(z) // 2
    rows = torch.cat([rows, rows + half])
    s = (z[rows] @ z.T).to(lse.dtype) / temperature
    p = (s - lse[rows, None]).exp() + (s - lse).exp()
    at = torch.arange(len(rows), device=z.device)
    p[at, rows] = 0
    p[at, (rows + half) % len(z)] -= 2
    gradient = (p.to(z.dtype) @ z) / (temperature * len(z))
    return (gradient - z[rows] * (gradient * z[rows]).sum(1, keepdim=True)) / norms[rows]


@pytest.mark.parametrize("dtype, precision", [(HALF, "highest"), (torch.float32, "high"), (torch.float32, "highest")], ids=str)
def test_nt_xent_of_131072_rows(dtype, precision, on_device):
    pairs, temperature, before = on_device(65536, 300), 0.1, torch.get_float32_matmul_precision()
    views = [*two_views((pairs, 128), dtype, "cuda").values()]
    wide = [view.double() for view in views]
    z = torch.cat([F.normalize(view, dim=1) for view in wide])
    lse = chunked_lse(z, 1 / temperature)
    want = lse.mean() - (z[:pairs] * z[pairs:]).sum(1).mean() / temperature
    rows = torch.linspace(0, pairs - 1, 64, device="cuda").long()
    truth = some_gradients(wide, lse, rows, temperature)
    torch.set_float32_matmul_precision(precision)
    try:
        leaves = [view.requires_grad_() for view in views]
        loss = nt_xent(*leaves, temperature)
        loss.backward()
        found = torch.cat([leaf.grad[rows] for leaf in leaves])
        usual = some_gradients([view.detach() for view in views], lse.float(), rows, temperature)
    finally:
        torch.set_float32_matmul_precision(before)
    assert relative_error(loss, want) < (FLOOR[dtype] if precision == "highest" else 1e-3)
    assert_no_worse("gradient", found, usual, truth, dtype)


def two_sides(beyond):
    """x (16, 128), and y (M, 128) of more than 2^31 elements, which are zeros except in the last 16 rows; these are those of x."""
    d = 128
    m = beyond // d + (1 << 10)
    x = F.normalize(torch.randn(16, d, device="cuda"), dim=1).to(HALF)
    y = torch.zeros(m, d, device="cuda", dtype=HALF)
    y[-16:] = x
    return x.requires_grad_(), y


def check_last_rows(x, y, s_gradient, dy):
    """dy of the last rows, and of the first row, is ds.T x."""
    assert relative_error(dy[-16:], s_gradient[:, 1:].T @ x.detach().double()) < 2 * FLOOR[HALF]
    assert relative_error(dy[0], s_gradient[:, 0] @ x.detach().double()) < 2 * FLOOR[HALF]


@pytest.mark.parametrize("columns_move", [False, True])
def test_lse_of_columns_beyond_two_to_the_31_elements(columns_move, beyond):
    x, y = two_sides(beyond)
    y.requires_grad_(columns_move)
    scale = 14.0
    lse = similarity_lse(x, y, scale=scale)
    own = scale * x.detach().double() @ x.detach().double().T
    want = torch.logaddexp(torch.logsumexp(own, 1), torch.full_like(own[0], len(y) - 16).log())
    assert relative_error(lse, want) < 1e-5
    lse.sum().backward()
    p = torch.cat([torch.zeros_like(own[:, :1]), own], 1).sub(want[:, None]).exp()
    assert relative_error(x.grad, scale * p[:, 1:] @ x.detach().double()) < 2 * FLOOR[HALF]
    if columns_move:
        check_last_rows(x, y, scale * p, y.grad)


def test_cross_beyond_two_to_the_31_elements(beyond):
    x, y = two_sides(beyond)
    y.requires_grad_()
    scale = 14.0
    row, column, _ = similarity_cross(x, y, scale=scale)
    own = scale * x.detach().double() @ x.detach().double().T
    rows = torch.logaddexp(torch.logsumexp(own, 1), torch.full_like(own[0], len(y) - 16).log())
    columns = torch.logsumexp(own, 0)
    assert relative_error(row, rows) < 1e-5 and relative_error(column[-16:], columns) < 1e-5
    torch.testing.assert_close(column[:-16], torch.full_like(column[:-16], math.log(16)), rtol=1e-5, atol=0)
    dx, dy = torch.autograd.grad(row.sum() + column[-16:].sum(), [x, y])
    p = (own - rows[:, None]).exp() + (own - columns).exp()
    first = (-rows).exp()[:, None]
    assert relative_error(dx, scale * p @ x.detach().double()) < 2 * FLOOR[HALF]
    check_last_rows(x, y, scale * torch.cat([first, p], 1), dy)


def test_sigmoid_pairs_beyond_two_to_the_31_elements(beyond):
    x, y = two_sides(beyond)
    y.requires_grad_()
    scale, bias, m = 10.0, -20.0, len(y)
    x_id, y_id = torch.arange(16, device="cuda"), torch.full((m,), -1, device="cuda")
    y_id[-16:] = x_id
    loss = sigmoid_pair(x, y, scale=scale, bias=bias, x_id=x_id, y_id=y_id)
    sign = 1 - 2 * torch.eye(16, device="cuda", dtype=torch.float64)
    s = sign * (scale * x.detach().double() @ x.detach().double().T + bias)
    empty = 16 * (m - 16) * math.log1p(math.exp(bias))
    assert relative_error(loss, F.softplus(s).sum() + empty) < 1e-5
    dx, dy = torch.autograd.grad(loss, [x, y])
    weight = scale * sign * s.sigmoid()
    assert relative_error(dx, weight @ x.detach().double()) < 2 * FLOOR[HALF]
    first = torch.full_like(weight[:, :1], scale / (1 + math.exp(-bias)))
    check_last_rows(x, y, torch.cat([first, weight], 1), dy)


def test_normalized_rows_beyond_two_to_the_31_elements(beyond):
    d = 128
    b = beyond // (2 * d) + 2000
    a, b = (torch.empty(b, d, device="cuda", dtype=HALF).normal_().requires_grad_() for _ in range(2))
    z, dot = normalize_pair(a, b)
    da, db = torch.autograd.grad(z[-1000:].float().square().sum() + 3 * dot[-1000:].sum(), [a, b])
    ends = [t.detach()[-1000:].double().requires_grad_() for t in (a, b)]
    unit = [F.normalize(end, dim=1) for end in ends]
    want = (unit[0] * unit[1]).sum(1)
    assert relative_error(z[-1000:], unit[1]) < FLOOR[HALF] and relative_error(dot[-1000:], want) < FLOOR[HALF]
    for got, true in zip((da, db), torch.autograd.grad(3 * want.sum(), ends), strict=True):
        assert relative_error(got[-1000:], true) < 2 * FLOOR[HALF] and not got[:-1000].any()


# --- updates ------------------------------------------------------------------------------------------------------------------


def test_ema_beyond_two_to_the_31_elements(beyond):
    count = beyond + 12_345
    e, p = torch.zeros(count, dtype=HALF, device="cuda"), torch.ones(count, dtype=HALF, device="cuda")
    p[-1] = 3.0
    ema_update_(e, p, 0.5)
    assert e[-1].item() == 1.5 and (e[:-1] == 0.5).all()


STEPS = {form: (lars_, 3, {"lr": 0.3, "form": form, "adapt": False}) for form in FORMS}
STEPS["adamw"] = (adamw_, 4, {"step": 3, "lr": 0.1})


@pytest.mark.parametrize("op, count, rates", STEPS.values(), ids=STEPS)
def test_a_step_beyond_two_to_the_31_elements(op, count, rates, beyond):
    """The end is random and changes as it does alone; the rest is constant and changes as its first element does alone."""
    size, end = beyond + 12_345, 1000
    state = [torch.full((size,), 0.5, dtype=HALF, device="cuda") for _ in range(count)]
    for t in state:
        t[-end:] = torch.rand(end, device="cuda")
    alone = [t[-end:].clone() for t in state]
    start = [t[:1].clone() for t in state]
    op(*([t] for t in state), **rates)
    op(*([t] for t in alone), **rates)
    op(*([t] for t in start), **rates)
    for t, last, first in zip(state, alone, start, strict=True):
        assert torch.equal(t[-end:], last) and (t[:-end] == first).all()
    assert not torch.equal(start[0], torch.full_like(start[0], 0.5))


@pytest.mark.parametrize("layout", ["dk", "kd"])
def test_a_queue_beyond_two_to_the_31_elements(layout, beyond):
    """The push wraps around: 10 keys go to the last places, 54 to the first."""
    d = 128
    size = beyond // d + 77
    queue = torch.zeros((d, size) if layout == "dk" else (size, d), dtype=HALF, device="cuda")
    ptr, keys = torch.tensor([size - 10], device="cuda"), torch.rand(64, d, device="cuda").to(HALF)
    queue_push_(queue, ptr, keys, layout=layout)
    rows = queue.t() if layout == "dk" else queue
    assert torch.equal(rows[-10:], keys[:10]) and torch.equal(rows[:54], keys[10:]) and ptr.item() == 54
    assert not rows[54:-10].any()


# --- masks and tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["noise", "seed"])
def test_ids_beyond_two_to_the_31_elements(of, beyond):
    length = 196
    rows = beyond // length + 9
    if of == "noise":
        noise = torch.rand(rows, length, device="cuda")
        ids = mask_ids((rows, length), noise=noise)
        some, keep = slice(-100, None), length // 4
        order = noise[some].argsort(dim=1, stable=True)
        assert torch.equal(ids.ids_keep[some], order[:, :keep]) and torch.equal(ids.ids_restore[some], order.argsort(1))
        assert torch.equal(ids.mask[some], (order.argsort(1) >= keep).float())
    else:
        ids = mask_ids((rows, length), seed=3, device="cuda")
        few = mask_ids((8, length), seed=3)
        assert torch.equal(ids.ids_restore[:8].cpu(), few.ids_restore)
        shuffle = torch.cat([ids.ids_keep[-100:], ids.ids_mask[-100:]], 1)
        everyone = torch.arange(length, device="cuda").expand(100, -1)
        assert torch.equal(ids.ids_restore[-100:].gather(1, shuffle), everyone)
        assert not torch.equal(ids.ids_restore[-1], ids.ids_restore[0])


def test_blocks_beyond_two_to_the_31_patches(beyond):
    rows = beyond // 196 + 9
    goals = torch.arange(rows, device="cuda") % 197
    mask = block_mask(rows, (14, 14), goals, exact=True, seed=torch.full((), 3, device="cuda"))
    assert torch.equal(mask[:50].cpu(), block_mask(50, (14, 14), goals[:50].cpu(), exact=True, seed=3))
    assert all(torch.equal(mask[i : i + 10**6].sum((1, 2)), goals[i : i + 10**6]) for i in range(0, rows, 10**6))


def test_more_than_2_to_the_31_text_tokens(beyond):
    """The first tokens of all rows are masked as they are alone, and about the right share of the last row is masked."""
    length = 500_003
    rows = beyond // length + 105
    how = {"mask_id": 103, "vocab_size": 30522}
    ids = torch.full((rows, length), 5, device="cuda")
    inputs, labels = mask_tokens(ids, seed=torch.full((), 2, device="cuda"), **how)
    chosen = labels[-1] >= 0
    alone = mask_tokens(torch.full((rows, 8), 5), seed=2, **how)
    assert torch.equal(labels[:, :8].cpu(), alone[1]) and torch.equal(inputs[:, :8].cpu(), alone[0])
    assert 0.148 < chosen.double().mean() < 0.152 and (inputs[-1][~chosen] == 5).all()


def test_tokens_beyond_two_to_the_31_elements(beyond):
    n, width = 3, 1024
    length = beyond // (n * width) + 5000
    x = torch.empty(n, length, width, dtype=HALF, device="cuda").normal_().requires_grad_()
    ids = torch.arange(length - 1, -1, -1, device="cuda").expand(n, length)[:, :4096].contiguous()
    taken = gather_tokens(x, ids)
    assert torch.equal(taken, x[:, length - 4096 :].flip(1))
    (dx,) = torch.autograd.grad(taken, x, torch.ones_like(taken))
    assert (dx[:, length - 4096 :] == 1).all() and not dx[:, : length - 4096].any()


def test_restored_tokens_beyond_two_to_the_31_elements(beyond):
    kept, length, width = 49, 600, 1024
    n = beyond // (length * width) + 600
    x, token = (torch.randn(shape, device="cuda", dtype=HALF, requires_grad=True) for shape in ((n, kept, width), (width,)))
    ids = mask_ids((n, length), num_keep=kept, seed=3, device="cuda")
    full = restore_tokens(x, ids.ids_restore, token, num_prefix_tokens=0)
    assert torch.equal(gather_tokens(full, ids.ids_keep), x)
    assert torch.equal(full[-1, ids.ids_mask[-1]], token.expand(length - kept, width))
    dx, dtoken = torch.autograd.grad(full, [x, token], torch.ones_like(full))
    assert (dx == 1).all()
    torch.testing.assert_close(dtoken, torch.full_like(dtoken, n * (length - kept)))


def test_positions_beyond_two_to_the_31_elements(beyond):
    kept, length, width = 49, 196, 1024
    n = beyond // (kept * width) + 100
    ids = mask_ids((n, length), num_keep=kept, seed=3, device="cuda").ids_keep.contiguous()
    pos, bias = (torch.randn(shape, device="cuda", dtype=HALF) for shape in ((length, width), (width,)))
    out = torch.ops.fastssl.visible_positions(ids, bias, pos, None, width, HALF)
    want = (pos.float() + bias.float()).to(HALF)
    assert torch.equal(out[-1], want[ids[-1]]) and torch.equal(out[0], want[ids[0]])


def test_images_beyond_two_to_the_31_elements(beyond):
    patch, side = 16, 224
    n = beyond // (3 * side * side) + 40
    images = torch.empty(n, 3, side, side, dtype=HALF, device="cuda").normal_()
    ids = mask_ids((n, 196), seed=1, device="cuda")
    patches = torch.ops.fastssl.visible_patches_fwd(images, ids.ids_keep.contiguous(), patch, patch, 0, HALF)
    last = eager.patches(images[-1:], patch, patch, "cpq")
    assert torch.equal(patches[-1], last[0, ids.ids_keep[-1]])
    dimages = torch.ops.fastssl.visible_patches_bwd(patches, ids.ids_keep.contiguous(), images.shape, patch, patch, 0)
    visible = eager.patches(dimages[-1:], patch, patch, "cpq")[0]
    assert torch.equal(visible, last[0] * (ids.mask[-1] == 0)[:, None])


def test_the_loss_of_images_beyond_two_to_the_31_elements(beyond):
    patch, side = 16, 224
    n = beyond // (3 * side * side) + 40
    images = torch.empty(n, 3, side, side, dtype=HALF, device="cuda").normal_()
    mask = mask_ids((n, 196), seed=1, device="cuda").mask
    pred = torch.zeros(n, 196, 768, dtype=HALF, device="cuda", requires_grad=True)
    loss = masked_patch_loss(images, pred, mask, patch)
    (dpred,) = torch.autograd.grad(loss, pred)
    squares = torch.zeros((), dtype=torch.float64, device="cuda")
    for i in range(0, n, 400):
        targets = eager.patches(images[i : i + 400], patch, patch).double()
        squares += targets.square().mean(2).mul(mask[i : i + 400]).sum()
    torch.testing.assert_close(loss.double(), squares / mask.double().sum(), rtol=1e-5, atol=0)
    expected = -2 * eager.patches(images[-1:], patch, patch).double()[0] / (768 * mask.double().sum())
    removed = mask[-1] != 0
    assert relative_error(dpred[-1][removed], expected[removed]) < FLOOR[HALF]
    assert not dpred[-1][~removed].any()


def test_latents_beyond_two_to_the_31_elements(beyond):
    length, hidden, width = 1024, 1024, 1024
    n = beyond // (length * width) + 3
    target = torch.empty(n, length, width, dtype=HALF, device="cuda").normal_()
    ids = mask_ids((n, length), seed=1, device="cuda").ids_restore
    pred = torch.zeros(n, hidden, width, dtype=HALF, device="cuda", requires_grad=True)
    loss = masked_latent_loss(pred, target, ids, loss="l2")
    (dpred,) = torch.autograd.grad(loss, pred)
    torch.testing.assert_close(loss, torch.ones_like(loss), rtol=1e-4, atol=0)  # the mean square of normalised rows
    expected = -2 * F.layer_norm(target[-1].double(), (width,))[ids[-1]] / pred.numel()
    assert relative_error(dpred[-1], expected) < FLOOR[HALF]
