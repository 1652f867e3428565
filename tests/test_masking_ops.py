"""Edges of the ops of masked image modelling that the case table does not reach: ids bit for bit, sizes, masks, layouts, dtypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl import functional as F
from fastssl.ops._register import _C
from fastssl.reference import mask_ids as mask_reference
from fastssl.testing import masking
from fastssl.testing.compare import assert_no_worse

SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 65504.0)


def assert_stable_argsort(noise, keep):
    ids = F.mask_ids(tuple(noise.shape), noise=noise, num_keep=keep)
    shuffle = noise.argsort(dim=1, stable=True)
    assert torch.equal(torch.cat([ids.ids_keep, ids.ids_mask], 1), shuffle)
    assert torch.equal(ids.ids_restore, shuffle.argsort(1))
    assert torch.equal(ids.mask, (ids.ids_restore >= keep).float()) and ids.mask.dtype == torch.float32
    assert ids.ids_keep.shape == (len(noise), keep)


# --- mask_ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 49, 196, 1000, 1568, 65536])
def test_ids_are_those_of_a_stable_argsort(length, dtype):
    rows = 3 if length > 2000 else 17
    assert_stable_argsort(torch.rand(rows, length).to(dtype), length // 4)  # in 16 bits most values have an equal


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 10**6), st.booleans())
def test_ties_and_special_values(rows, length, seed, special):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-3, 3, (rows, length), generator=generator).float()
    if special:
        noise = torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), (rows, length), generator=generator)]
    for dtype in (torch.float32, torch.float64):
        assert_stable_argsort(noise.to(dtype), min(length, seed % (length + 1)))


def test_noise_may_be_strided():
    noise = torch.rand(5, 60)
    assert_stable_argsort(noise[:, ::3], 4)
    assert_stable_argsort(noise.t(), 2)


@pytest.mark.parametrize("rows, length", [(1, 1), (3, 5), (4, 196), (2, 5000)])
@pytest.mark.parametrize("seed", [0, 3, -1, 2**63 - 1, -(2**63)])
def test_seeded_ids_are_those_of_the_reference(rows, length, seed):
    ids = F.mask_ids((rows, length), 0.6, seed=seed)
    keep = int(length * (1 - 0.6))
    shuffle, restore, mask = mask_reference.mask_ids(None, torch.tensor(seed), rows, length, keep)
    assert torch.equal(torch.cat(ids[:2], 1), shuffle) and torch.equal(ids.ids_restore, restore) and torch.equal(ids.mask, mask)
    again = F.mask_ids((rows + 2, length), 0.6, seed=torch.tensor([seed]))
    assert torch.equal(again.ids_restore[:rows], ids.ids_restore)  # of the place in the batch and the seed alone


def test_seeds_rows_and_patches_are_all_different():
    one, other = (F.mask_ids((64, 196), 0.75, seed=seed).ids_restore for seed in (1, 2))
    assert len(torch.unique(torch.cat([one, other]), dim=0)) == 128
    kept = F.mask_ids((4000, 50), 0.6, seed=5).mask.eq(0).double().mean(0)
    assert (kept - 0.4).abs().max() < 5 * (0.4 * 0.6 / 4000) ** 0.5


def test_without_noise_it_is_one_call_of_torch_rand():
    torch.manual_seed(7)
    ours = F.mask_ids((4, 30), 0.5)
    torch.manual_seed(7)
    assert torch.equal(ours.ids_restore, F.mask_ids((4, 30), 0.5, noise=torch.rand(4, 30)).ids_restore)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(ours.ids_restore, F.mask_ids((4, 30), 0.5, generator=generator).ids_restore)


@pytest.mark.parametrize(
    "length, ratio, kept",  # MAE, stable-pretraining, SimMIM, timm
    [(196, 0.75, (49, 49, 49, 49)), (196, 0.6, (78, 79, 78, 78)), (196, 0.9, (19, 20, 19, 19)), (100, 0.9, (9, 10, 10, 9))]
    + [(1, 0.75, (0, 1, 0, 1)), (7, 0.0, (7, 7, 7, 7)), (3, 0.999, (0, 1, 0, 1))],
)
def test_roundings_of_the_libraries(length, ratio, kept):
    names = ("keep_floor", "mask_floor", "mask_ceil", "keep_one")
    assert tuple(F.num_kept(length, ratio, name) for name in names) == kept
    for name, keep in zip(names, kept, strict=True):
        assert F.mask_ids((2, length), ratio, rounding=name).ids_keep.shape[1] == keep


def test_random_masking_is_the_papers():
    x, noise = torch.randn(5, 30, 8, requires_grad=True), torch.rand(5, 30)
    for ours, theirs in zip(F.random_masking(x, 0.7, noise=noise), masking.random_masking(x, 0.7, noise), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    F.random_masking(x, 0.7, noise=noise)[0].sum().backward()
    assert torch.equal(x.grad.sum(2) > 0, masking.random_masking(x, 0.7, noise)[1] == 0)


@pytest.mark.parametrize("length, ratio", [(1, 0.75), (8, 0.0), (1, 0.0)])
def test_all_or_nothing_masked(length, ratio):
    x = torch.randn(2, length, 3, requires_grad=True)
    kept, mask, restore = F.random_masking(x, ratio)
    assert kept.shape == (2, int(length * (1 - ratio)), 3) and mask.sum() == 2 * (length - kept.shape[1])
    token = torch.zeros(3, requires_grad=True)
    full = F.restore_tokens(kept, restore, token, num_prefix_tokens=0)
    full.sum().backward()
    assert torch.equal(full, x if ratio == 0 else torch.zeros_like(x)) and token.grad.sum() == 3 * mask.sum()


@pytest.mark.parametrize("mask_class_token", [False, True])
def test_token_masks_are_a_partition(mask_class_token):
    keep, hidden = F.random_token_mask((6, 20), 0.6, mask_class_token)
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(20).expand(6, 20))
    assert keep.shape[1] == 8
    assert mask_class_token or not keep[:, 0].any()


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


def test_restore_of_ids_that_are_no_permutation_has_the_exact_gradient():
    ids = torch.randint(0, 10, (4, 10))
    inputs = {"x": torch.randn(4, 5, 3), "mask_token": torch.randn(1, 1, 3)}
    against_eager(
        lambda x, mask_token: F.restore_tokens(x, ids, mask_token),
        lambda x, mask_token: masking.restore_tokens(x, ids, mask_token),
        inputs,
    )


def test_restore_of_narrow_tokens_gives_the_widest_dtype():
    ids = masking.shuffled(2, 6, torch.empty(0))
    x, token, pos = torch.randn(2, 4, 8).bfloat16().requires_grad_(), torch.randn(1, 1, 8), torch.randn(1, 7, 8)
    out = F.restore_tokens(x, ids, token, pos_embed=pos)
    assert torch.equal(out, masking.restore_tokens(x, ids, token, pos_embed=pos)) and out.dtype == torch.float32
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16


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
    middle.data.mul_(1)  # not noticed by design
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


# --- all ------------------------------------------------------------------------------------------------------------------


def op_calls():
    """Each registered op with arguments, for opcheck."""
    x, ids, noise = torch.randn(2, 6, 4), torch.tensor([[0, 5, 2], [1, 1, 4]]), torch.rand(2, 6)
    images, pred = torch.randn(2, 3, 4, 6), torch.randn(2, 6, 12)
    mask, how = (noise > 0.3).float(), (2, 2, True, True, 1e-6, False)
    _, total, stats = torch.ops.fastssl.patch_loss_fwd(images, pred, mask, None, *how)
    restore = masking.shuffled(2, 6, x)
    return {
        "mask_ids": (noise, None, 2, 6, 2),
        "mask_ids.seed": (None, torch.tensor(3), 2, 6, 2),
        "gather_tokens_fwd": (x, ids),
        "gather_tokens_bwd": (x[:, :3], ids, 6),
        "restore_tokens_fwd": (x[:, :4], restore, torch.randn(4), torch.randn(7, 4), 1),
        "restore_tokens_bwd": (torch.randn(2, 7, 4), restore, 3, 1, [True, True]),
        "visible_patches_fwd": (images, ids, 2, 2, 1, torch.float32),
        "visible_patches_bwd": (torch.randn(2, 4, 12), ids, [2, 3, 4, 6], 2, 2, 1),
        "visible_positions": (ids, torch.randn(5), torch.randn(7, 5), torch.randn(1, 5), 5, torch.float32),
        "patch_loss_fwd": (images, pred, mask, None, *how),
        "patch_loss_bwd": (torch.ones(()), total, stats, images, pred, mask, None, *how),
        "patch_loss_one_pass": (images, pred, mask, None, *how),
    }


@pytest.mark.parametrize("name", op_calls())
def test_opcheck(name):
    op = getattr(torch.ops.fastssl, name.split(".")[0]).default
    torch.library.opcheck(op, op_calls()[name], test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


@pytest.mark.parametrize("name", op_calls())
def test_kernels_and_references_agree(name):
    if _C is None:
        pytest.skip("no C++ kernels here")
    torch.manual_seed(0)
    arguments = op_calls()[name]
    word = name.split(".")[0]
    file = {"visible": "embed_visible", "patch": "patch_loss"}.get(
        word.split("_")[0], word.removesuffix("_fwd").removesuffix("_bwd")
    )
    reference = getattr(__import__(f"fastssl.reference.{file}", fromlist=["x"]), word)
    ours, theirs = getattr(torch.ops.fastssl, word)(*arguments), reference(*arguments)
    for a, b in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (ours, theirs)), strict=True):
        if name == "patch_loss_fwd" and a.dim() == 3:  # stats beside the mask are not promised
            a, b = a[arguments[2] > 0], b[arguments[2] > 0]
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("randomness", ["noise", "seed", "rand"])
def test_masking_is_compiled_whole(randomness):
    def step(x, images, noise, seed):
        given = {"noise": {"noise": noise}, "seed": {"seed": seed}, "rand": {}}[randomness]
        kept, mask, restore = F.random_masking(x, 0.5, **given)
        full = F.restore_tokens(kept, restore, x.new_zeros(8), num_prefix_tokens=0)
        return F.masked_patch_loss(images, F.patchify(images, 4)[:, :, :8].repeat(1, 1, 6) + full.repeat(1, 1, 6), mask, 4), mask

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 3):
        x, images = torch.randn(n, 9, 8, requires_grad=True), torch.rand(n, 3, 12, 12)
        noise, seed = torch.rand(n, 9), torch.tensor(n)
        torch.manual_seed(0)
        loss, mask = compiled(x, images, noise, seed)
        torch.manual_seed(0)
        expected, expected_mask = step(x, images, noise, seed)
        assert torch.equal(mask, expected_mask)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(t, x)[0] for t in (loss, expected)))


X, IDS, NOISE = torch.randn(2, 6, 4), torch.tensor([[0, 5], [1, 4]]), torch.rand(2, 6)
IMAGES, WEIGHT, PRED, MASK = torch.rand(2, 3, 4, 6), torch.randn(5, 3, 2, 2), torch.randn(2, 6, 12), torch.ones(2, 6)
TOKEN, RESTORE = torch.randn(1, 1, 4), torch.arange(6).expand(2, 6)
REFUSALS = [
    (ValueError, r"mask_ratio must be in \[0, 1\), got 1.0", lambda: F.random_masking(X, 1.0)),
    (ValueError, r"mask_ratio must be in \[0, 1\), got -0.1", lambda: F.mask_ids((2, 6), -0.1)),
    (ValueError, "mask_ratio must be .* got nan", lambda: F.mask_ids((2, 6), float("nan"))),
    (TypeError, "mask_ratio must be a number, got str", lambda: F.random_token_mask((2, 6), "half")),
    (ValueError, r"noise must have shape \(2, 6\), got \(2, 5\)", lambda: F.random_masking(X, 0.5, noise=NOISE[:, :5])),
    (TypeError, "noise must be float32, .* got torch.int64", lambda: F.random_masking(X, 0.5, noise=IDS)),
    (TypeError, "noise must be a tensor", lambda: F.random_masking(X, 0.5, noise=[1.0])),
    (ValueError, "noise must be on meta, got cpu", lambda: F.mask_ids((2, 6), noise=NOISE, device="meta")),
    (ValueError, "only one of noise, generator and seed", lambda: F.mask_ids((2, 6), noise=NOISE, seed=1)),
    (ValueError, "seed must be .* one-element int64 tensor", lambda: F.mask_ids((2, 6), seed=torch.tensor([1, 2]))),
    (TypeError, "seed must be a whole number", lambda: F.mask_ids((2, 6), seed=1.5)),
    (ValueError, r"seed must be in \[-2\^63", lambda: F.mask_ids((2, 6), seed=2**63)),
    (ValueError, r"num_keep must be a whole number in \[0, 6\], got 7", lambda: F.mask_ids((2, 6), num_keep=7)),
    (ValueError, "size must be .* at least 1", lambda: F.mask_ids((0, 6))),
    (TypeError, "size must be a pair", lambda: F.mask_ids(6)),
    (ValueError, "size must be below", lambda: F.mask_ids((2, 2**31), seed=1)),
    (ValueError, "rounding must be one of", lambda: F.num_kept(6, 0.5, "round")),
    (ValueError, "x must have shape", lambda: F.random_masking(X[0], 0.5)),
    (ValueError, "x must have shape .* no side of it 0", lambda: F.random_masking(X[:0], 0.5)),
    (TypeError, "x must be float32", lambda: F.gather_tokens(X.long(), IDS)),
    (TypeError, "ids must be int64, got torch.int32", lambda: F.gather_tokens(X, IDS.int())),
    (ValueError, r"ids must be in \[0, 6\), got 6", lambda: F.gather_tokens(X, IDS + 1)),
    (ValueError, r"ids must be in \[0, 6\), got -1", lambda: F.gather_tokens(X, IDS - 1)),
    (ValueError, "ids must have shape .* 2 rows", lambda: F.gather_tokens(X, IDS[:1])),
    (ValueError, "x and ids must be on the same device", lambda: F.gather_tokens(X, IDS.to("meta"))),
    (ValueError, r"mask_token must have shape \(4,\)", lambda: F.restore_tokens(X, RESTORE, TOKEN[..., :3])),
    (ValueError, r"pos_embed must have shape \(1, 7, 4\)", lambda: F.restore_tokens(X, RESTORE, TOKEN, pos_embed=X[:1])),
    (ValueError, "num_prefix_tokens must be .* got 7", lambda: F.restore_tokens(X, RESTORE, TOKEN, num_prefix_tokens=7)),
    (ValueError, "a column for each of 6 kept tokens", lambda: F.restore_tokens(X, IDS, TOKEN, num_prefix_tokens=0)),
    (ValueError, r"ids_restore must be in \[0, 6\), got 6", lambda: F.restore_tokens(X, RESTORE + 1, TOKEN)),
    (TypeError, "mask_token must be a float tensor", lambda: F.restore_tokens(X, RESTORE, None)),
    (ValueError, "multiples of the patch size", lambda: F.embed_visible(IMAGES[..., :5], WEIGHT, IDS)),
    (ValueError, "weight must have the images' 3 channels", lambda: F.embed_visible(IMAGES, WEIGHT[:, :2], IDS)),
    (ValueError, r"bias must have shape \(5,\)", lambda: F.embed_visible(IMAGES, WEIGHT, IDS, X[0, 0])),
    (ValueError, r"pos_embed must have shape \(1, 6, 5\)", lambda: F.embed_visible(IMAGES, WEIGHT, IDS, pos_embed=X)),
    (ValueError, r"ids must be in \[0, 6\)", lambda: F.embed_visible(IMAGES, WEIGHT, IDS + 5)),
    (ValueError, "multiples of the patch size", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 4)),
    (ValueError, r"pred must have shape \(2, 6, 12\)", lambda: F.masked_patch_loss(IMAGES, PRED[:, 1:], MASK, 2)),
    (ValueError, r"mask must have shape \(2, 6\)", lambda: F.masked_patch_loss(IMAGES, PRED, MASK[:, 1:], 2)),
    (TypeError, "mask must be bool or float", lambda: F.masked_patch_loss(IMAGES, PRED, MASK.long(), 2)),
    (ValueError, "exactly one of mask and ids", lambda: F.masked_patch_loss(IMAGES, PRED, None, 2)),
    (ValueError, "exactly one of mask and ids", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 2, ids=IDS)),
    (ValueError, "layout must be one of", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 2, layout="chw")),
    (ValueError, "loss must be one of", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 2, loss="huber")),
    (TypeError, "patch_size must be a whole number", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 2.0)),
    (ValueError, "patch_size must be at least 1", lambda: F.patchify(IMAGES, 0)),
    (ValueError, "at least 2 entries", lambda: F.masked_patch_loss(IMAGES[:, :1], X, MASK, 1, norm_pix_loss=True)),
    (ValueError, "eps must be", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 2, eps=-1.0)),
    (NotImplementedError, "images are a constant", lambda: F.masked_patch_loss(IMAGES.clone().requires_grad_(), PRED, MASK, 2)),
    (ValueError, "a square number of patches", lambda: F.unpatchify(PRED, 2)),
    (ValueError, "a multiple of 9 entries", lambda: F.unpatchify(PRED, 3)),
    (ValueError, "2 x 2 patches, got 6", lambda: F.unpatchify(PRED, 2, image_size=4)),
]


@pytest.mark.parametrize("error, message, call", REFUSALS, ids=[f"{i}" for i in range(len(REFUSALS))])
def test_refusals(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_compiled_graph_meets_the_kernels_own_check_of_ids():
    compiled = torch.compile(lambda x, ids: F.gather_tokens(x, ids), fullgraph=True, backend="aot_eager")
    with pytest.raises((ValueError, RuntimeError), match=r"\[0, 6\)|out of bounds"):
        compiled(X, IDS + 1)
