"""What every op of masked image modelling promises: opcheck, kernel and reference agree, compiled whole, clear refusals."""

import pytest
import torch

from fastssl import functional as F
from fastssl.ops._register import _C
from tests.support.masking_calls import op_calls


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


def compiled_whole(step):
    torch._dynamo.reset()
    return torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")


def test_masking_is_compiled_whole():
    def step(x, images, noise):
        kept, mask, restore = F.random_masking(x, 0.5, noise=noise)
        full = F.restore_tokens(kept, restore, x.new_zeros(8), num_prefix_tokens=0)
        return F.masked_patch_loss(images, F.patchify(images, 4)[:, :, :8].repeat(1, 1, 6) + full.repeat(1, 1, 6), mask, 4), mask

    compiled = compiled_whole(step)
    for n in (2, 3):
        x, images, noise = torch.randn(n, 9, 8, requires_grad=True), torch.rand(n, 3, 12, 12), torch.rand(n, 9)
        (loss, mask), (expected, expected_mask) = compiled(x, images, noise), step(x, images, noise)
        assert torch.equal(mask, expected_mask)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(t, x)[0] for t in (loss, expected)))


@pytest.mark.parametrize("randomness", ["seed", "rand"])
def test_random_numbers_are_compiled_whole(randomness):
    def step(x, seed):
        return F.random_masking(x, 0.5, **({"seed": seed} if randomness == "seed" else {}))

    compiled = compiled_whole(step)
    for n in (2, 3):
        found = []
        for call in (compiled, step):
            torch.manual_seed(0)
            found.append(call(torch.arange(n * 9.0).reshape(n, 9, 1), torch.tensor(n)))
        assert all(map(torch.equal, *found))


X, IDS, NOISE = torch.randn(2, 6, 4), torch.tensor([[0, 5], [1, 4]]), torch.rand(2, 6)
IMAGES, WEIGHT, PRED, MASK = torch.rand(2, 3, 4, 6), torch.randn(5, 3, 2, 2), torch.randn(2, 6, 12), torch.ones(2, 6)
TOKEN, RESTORE = torch.randn(1, 1, 4), torch.arange(6).expand(2, 6)
REFUSALS = [
    (ValueError, r"random_masking: mask_ratio must be in \[0, 1\], got 1.5", lambda: F.random_masking(X, 1.5)),
    (ValueError, r"mask_ids: mask_ratio must be in \[0, 1\], got -0.1", lambda: F.mask_ids((2, 6), -0.1)),
    (ValueError, "mask_ids: mask_ratio must be .* got nan", lambda: F.mask_ids((2, 6), float("nan"))),
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
    (ValueError, "patch_size must be whole numbers of at least 1", lambda: F.patchify(IMAGES, 0)),
    (ValueError, "at least 2 entries", lambda: F.masked_patch_loss(IMAGES[:, :1], X, MASK, 1, norm_pix_loss=True)),
    (ValueError, "eps must be", lambda: F.masked_patch_loss(IMAGES, PRED, MASK, 2, eps=-1.0)),
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
