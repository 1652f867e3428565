"""Edges of the ops of masked image modelling that the case table does not reach: sizes, masks, layouts, dtypes."""

import pytest
import torch

from fastssl import functional as F
from fastssl.ops._register import _C, why_not_host
from fastssl.testing import masking
from fastssl.testing.compare import assert_no_worse

# --- tokens ---------------------------------------------------------------------------------------------------------------


def against_eager(ours, eager, inputs, dtype=torch.float32):
    """Results and gradients of both on the same inputs, and in float64."""

    def run(call, dtype=None):
        given = {n: t.detach().to(dtype or t.dtype).requires_grad_() for n, t in inputs.items()}
        out = call(**given)
        weight = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
        out.backward(weight)
        return [out.detach(), *(t.grad for t in given.values())]

    for name, *values in zip(("out", *inputs), run(ours), run(eager), run(eager, torch.float64), strict=True):
        assert_no_worse(name, *values, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradient_of_repeated_ids_is_summed_exactly(dtype):
    ids = torch.randint(0, 6, (4, 90))
    against_eager(
        lambda x: F.gather_tokens(x, ids), lambda x: masking.gather(x, ids), {"x": torch.randn(4, 6, 37).to(dtype)}, dtype
    )


def test_no_token_at_all():
    x = torch.randn(3, 5, 4, requires_grad=True)
    out = F.gather_tokens(x, torch.empty(3, 0, dtype=torch.int64))
    out.sum().backward()
    assert out.shape == (3, 0, 4) and torch.equal(x.grad, torch.zeros_like(x))


def test_a_slice_behind_the_class_token_is_read_in_place():
    x, ids = torch.randn(4, 9, 6), masking.shuffled(4, 8, torch.empty(0))[:, :3]
    assert torch.equal(F.gather_tokens(x[:, 1:], ids), masking.gather(x[:, 1:], ids))
    assert torch.equal(F.gather_tokens(x[..., ::2], ids), masking.gather(x[..., ::2], ids))


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 7, 20])
def test_restore_with_any_prefix(prefix, positions, kept):
    if prefix + kept == 0:
        pytest.skip("no token at all")
    ids = masking.shuffled(3, 20, torch.empty(0))
    inputs = {"x": torch.randn(3, prefix + kept, 6), "mask_token": torch.randn(1, 1, 6)}
    if positions:
        inputs["pos_embed"] = torch.randn(1, prefix + 20, 6)
    run = lambda call: lambda **t: call(t.pop("x"), ids, t.pop("mask_token"), num_prefix_tokens=prefix, **t)  # noqa: E731
    against_eager(run(F.restore_tokens), run(masking.restore_tokens), inputs)


def test_restore_of_narrow_tokens_gives_the_widest_dtype():
    ids = masking.shuffled(2, 6, torch.empty(0))
    x, token, pos = torch.randn(2, 4, 8).bfloat16().requires_grad_(), torch.randn(1, 1, 8), torch.randn(1, 7, 8)
    out = F.restore_tokens(x, ids, token, pos_embed=pos)
    assert torch.equal(out, masking.restore_tokens(x, ids, token, pos_embed=pos)) and out.dtype == torch.float32
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.skipif(why_not_host is not None, reason="fastssl._C is not in use")
def test_the_quick_check_knows_permutations():
    rows = torch.stack([torch.randperm(9) for _ in range(5)])
    assert _C.are_permutations(rows) and _C.are_permutations(rows.t().contiguous().t()) and _C.are_permutations(rows[::2])
    assert _C.are_permutations(torch.zeros(3, 1, dtype=torch.int64)) and _C.are_permutations(rows[:0])
    for wrong in (0, 8, 9, -1, 2**62, -(2**63)):
        changed = rows.clone()
        changed[3, int(rows[3].argmax() if wrong != 8 else rows[3].argmin())] = wrong
        assert not _C.are_permutations(changed), wrong
    for other in (rows.int(), rows[0], rows.double(), rows.to("meta"), rows.tolist(), rows.to_sparse()):
        assert not _C.are_permutations(other)


@pytest.mark.parametrize("size", [1, 65536])
def test_one_token_and_very_many(size):
    x, noise = torch.randn(1, size, 2), torch.rand(1, size)
    ids = F.mask_ids((1, size), noise=noise, num_keep=(size + 3) // 4)
    against_eager(lambda x: F.gather_tokens(x, ids.ids_keep), lambda x: masking.gather(x, ids.ids_keep), {"x": x})
    inputs = {"x": torch.randn(1, 1 + ids.ids_keep.shape[1], 2), "mask_token": torch.randn(1, 1, 2)}
    run = lambda call: lambda x, mask_token: call(x, ids.ids_restore, mask_token)  # noqa: E731
    against_eager(run(F.restore_tokens), run(masking.restore_tokens), inputs)
    images, mask = torch.randn(1, 1, 2, 2 * size), torch.ones(1, size)
    run = lambda call: lambda pred: call(images.to(pred.dtype), pred, mask, 2)  # noqa: E731
    against_eager(run(F.masked_patch_loss), run(masking.patch_loss), {"pred": torch.randn(1, size, 4)})


# --- embed_visible --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, patch", [(1, (4, 2)), (3, (2, 6)), (5, (1, 1)), (3, (16, 16))])
@pytest.mark.parametrize("kept", [0, 1, 6])
def test_embed_visible_equals_convolution_then_gather(channels, patch, kept):
    images = torch.randn(4, channels, 2 * patch[0], 3 * patch[1])
    ids = masking.shuffled(4, 6, images)[:, :kept]
    inputs = {"images": images, "weight": torch.randn(7, channels, *patch), "bias": torch.randn(7)}
    run = lambda call: lambda images, weight, bias: call(images, weight, ids, bias)  # noqa: E731
    if kept:
        against_eager(run(F.embed_visible), run(masking.embed_visible), inputs)
    else:
        assert F.embed_visible(images, inputs["weight"], ids).shape == (4, 0, 7)


def test_positions_without_a_prefix_part():
    images, weight, pos, cls = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 2, 2), torch.randn(1, 4, 5), torch.randn(1, 1, 5)
    ids = torch.tensor([[3, 0], [1, 2]])
    out = F.embed_visible(images, weight, ids, pos_embed=pos, prefix_tokens=cls)
    assert torch.equal(out[:, :1], cls.expand(2, 1, 5))
    torch.testing.assert_close(out[:, 1:], masking.embed_visible(images, weight, ids) + pos[0][ids])


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "sliced", "transposed"])
def test_images_in_any_layout(layout):
    images = torch.randn(4, 3, 8, 8)
    if layout == "channels_last":
        other = images.to(memory_format=torch.channels_last)
    elif layout == "expanded":
        other = images = images[:1].expand(4, 3, 8, 8)
    elif layout == "sliced":
        other = torch.cat([images, images], 3)[..., :8]
    else:
        other = images.transpose(2, 3).contiguous().transpose(2, 3)
    weight, ids, pred = torch.randn(5, 3, 4, 4), torch.tensor([[0, 3]] * 4), torch.randn(4, 4, 48)
    assert torch.equal(F.embed_visible(other, weight, ids), F.embed_visible(images.contiguous(), weight, ids))
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]] * 4)
    assert torch.equal(F.masked_patch_loss(other, pred, mask, 4), F.masked_patch_loss(images.contiguous(), pred, mask, 4))


def test_images_of_another_dtype_are_converted_on_the_way():
    images, ids = torch.rand(2, 3, 4, 4), torch.tensor([[3, 0], [1, 2]])
    weight = torch.randn(5, 3, 2, 2).bfloat16()
    assert torch.equal(F.embed_visible(images, weight, ids), F.embed_visible(images.bfloat16(), weight, ids))
    assert F.embed_visible(images.double(), weight, ids).dtype == torch.bfloat16


# --- masked_patch_loss ----------------------------------------------------------------------------------------------------


def loss_inputs(n=4, side=12, patch=4, channels=3, dtype=torch.float32):
    images = torch.rand(n, channels, side, side).to(dtype)
    length = (side // patch) ** 2
    mask = F.mask_ids((n, length), 0.6, seed=1).mask
    return images, torch.randn(n, length, channels * patch * patch).to(dtype), mask


@pytest.mark.parametrize("layout", ["pqc", "cpq"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("channels, patch, side", [(1, 2, 6), (3, 4, 12), (4, 3, 9), (3, 32, 64), (1, 40, 80)])
def test_loss_in_every_form(channels, patch, side, loss, norm, layout):
    images, pred, mask = loss_inputs(2, side, patch, channels)
    how = {"norm_pix_loss": norm, "layout": layout, "loss": loss}
    run = lambda call: lambda pred: call(images.to(pred.dtype), pred, mask, patch, **how)  # noqa: E731
    against_eager(run(F.masked_patch_loss), run(masking.patch_loss), {"pred": pred})


@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_images_and_predictions_of_different_dtypes(dtype, pred_dtype):
    images, pred, mask = loss_inputs(dtype=dtype)
    pred = pred.to(pred_dtype).requires_grad_()
    ours, exact = F.masked_patch_loss(images, pred, mask, 4), masking.patch_loss(images.double(), pred.double(), mask, 4)
    assert ours.dtype == torch.promote_types(pred_dtype, torch.float32)
    torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=0)
    assert torch.autograd.grad(ours, pred)[0].dtype == pred_dtype


def test_soft_and_boolean_masks():
    images, pred, mask = loss_inputs()
    weights = mask * torch.rand_like(mask)
    against_eager(
        lambda pred: F.masked_patch_loss(images.to(pred.dtype), pred, weights, 4),
        lambda pred: masking.patch_loss(images.to(pred.dtype), pred, weights, 4),
        {"pred": pred},
    )
    assert torch.equal(F.masked_patch_loss(images, pred, mask.bool(), 4), F.masked_patch_loss(images, pred, mask, 4))


def test_rows_of_the_named_patches_alone_give_the_same_loss():
    images, pred, _ = loss_inputs()
    ids = F.mask_ids((4, 9), 0.6, seed=1)
    full = F.masked_patch_loss(images, pred, ids.mask, 4, norm_pix_loss=True)
    named = F.masked_patch_loss(images, F.gather_tokens(pred, ids.ids_mask), None, 4, ids=ids.ids_mask, norm_pix_loss=True)
    torch.testing.assert_close(named, full, rtol=1e-6, atol=0)


def test_visible_patches_are_not_read():
    images, pred, mask = loss_inputs()
    expected = F.masked_patch_loss(images, pred, mask, 4)
    hidden = F.patchify(images, 4)
    hidden[mask == 0] = torch.nan
    spoiled = pred.masked_fill(mask[:, :, None] == 0, torch.nan).requires_grad_()
    loss = F.masked_patch_loss(F.unpatchify(hidden, 4), spoiled, mask, 4)
    loss.backward()
    assert torch.equal(loss, expected) and spoiled.grad.isfinite().all() and not spoiled.grad[mask == 0].any()


def test_an_empty_mask_is_an_error_or_zero_by_choice():
    images, pred, mask = loss_inputs()
    pred.requires_grad_()
    with pytest.raises(ValueError, match="masked_patch_loss: mask must have at least one removed patch"):
        F.masked_patch_loss(images, pred, torch.zeros_like(mask), 4)
    loss = F.masked_patch_loss(images, pred, torch.zeros_like(mask), 4, empty="zero")
    loss.backward()
    assert loss == 0 and torch.equal(pred.grad, torch.zeros_like(pred))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_refused(weight):
    images, pred, mask = loss_inputs()
    mask[0, 0] = weight
    with pytest.raises(ValueError, match=f"mask must hold weights that are at least 0 and finite, got {weight}"):
        F.masked_patch_loss(images, pred, mask, 4)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -3.0, 1024.0])
def test_upstream_gradients_and_a_second_backward(scale):
    images, pred, mask = loss_inputs()
    pred.requires_grad_()
    loss = F.masked_patch_loss(images, pred, mask, 4)
    first, second = (torch.autograd.grad(loss * scale, pred, retain_graph=True)[0] for _ in range(2))
    exact = torch.autograd.grad(masking.patch_loss(images, pred, mask, 4), pred)[0] * scale
    torch.testing.assert_close(first, exact, rtol=1e-5, atol=1e-9)
    assert torch.equal(first, second)


def test_two_losses_of_one_prediction_accumulate():
    images, pred, mask = loss_inputs()
    pred.requires_grad_()
    for _ in range(2):
        F.masked_patch_loss(images, pred, mask, 4).backward()
    torch.testing.assert_close(pred.grad, 2 * torch.autograd.grad(masking.patch_loss(images, pred, mask, 4), pred)[0])


def test_a_change_of_the_prediction_before_the_backward_is_noticed():
    images, pred, mask = loss_inputs()
    middle = pred.requires_grad_() * 1
    loss = F.masked_patch_loss(images, middle, mask, 4)
    middle.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_patchify_and_back():
    images = torch.randn(2, 3, 8, 12)
    for layout in ("pqc", "cpq"):
        patches = F.patchify(images, (4, 3), layout=layout)
        assert patches.shape == (2, 8, 36)
        assert torch.equal(F.unpatchify(patches, (4, 3), layout=layout, image_size=(8, 12)), images)
    assert torch.equal(F.patchify(images, 4)[0, 1].reshape(4, 4, 3), images[0, :, :4, 4:8].permute(1, 2, 0))
