"""Masked image modelling on what is unusual: infinities, NaN, tensors without data, refused calls, ops without Python's checks."""

import math
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl import functional as F
from fastssl import masking
from fastssl.ops._register import _C
from fastssl.ops.block_mask import _fits
from fastssl.reference import restore_tokens as restore_reference
from fastssl.testing import masking as plain
from fastssl.testing.compare import assert_no_worse
from tests.support.masking_calls import mask_calls, op_calls, short_calls

pytestmark = pytest.mark.usefixtures("one_thread")
NAN, INF = math.nan, math.inf

# --- 0 times infinity is not 0 ---------------------------------------------------------------------------------------------


def embed_inputs(dtype=torch.float32, before=2):
    images, ids = torch.randn(3, 2, 6, 8).to(dtype), plain.shuffled(3, 4, torch.empty(0))[:, :3]
    weight, bias = torch.randn(5, 2, 3, 4).to(dtype).requires_grad_(), torch.randn(5).to(dtype).requires_grad_()
    pos, prefix = torch.randn(1, 4 + before, 5).to(dtype).requires_grad_(), torch.randn(1, before, 5).to(dtype).requires_grad_()
    return images, weight, ids, bias, {"pos_embed": pos, "prefix_tokens": prefix if before else None}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_weight_that_is_not_finite_does_not_reach_the_prefix(value):
    images, weight, ids, bias, others = embed_inputs()
    with torch.no_grad():
        weight[1, 0, 2, 3] = value
    out, eager = (call(images, weight, ids, bias, **others) for call in (F.embed_visible, plain.embed_visible))
    assert torch.equal(out[:, :2], eager[:, :2]) and out[:, :2].isfinite().all()
    torch.testing.assert_close(out, eager, equal_nan=True)
    assert not out[:, 2:, 1].isfinite().any()


@pytest.mark.parametrize(
    "value, dtype, compiled",
    [(INF, torch.float32, False), (NAN, torch.float32, False), (-INF, torch.bfloat16, False), (INF, torch.float32, True)],
)
def test_a_prefix_whose_gradient_overflows_does_not_reach_the_weight(value, dtype, compiled):
    images, weight, ids, bias, others = embed_inputs(dtype)
    wanted = weight, bias, *others.values()
    call = lambda: F.embed_visible(images, weight, ids, bias, **others)  # noqa: E731
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    upstream = torch.randn(3, 5, 5).to(dtype)
    upstream[1, 0, 2] = value
    wide = [t.detach().double().requires_grad_() for t in wanted]
    exact = plain.embed_visible(images.double(), *wide[:1], ids, wide[1], pos_embed=wide[2], prefix_tokens=wide[3])
    found = [torch.autograd.grad(call(), wanted, upstream)]
    found += [torch.autograd.grad(plain.embed_visible(images, weight, ids, bias, **others), wanted, upstream)]
    found += [torch.autograd.grad(exact, wide, upstream.double())]
    for name, ours, eager, truth in zip(("weight", "bias", "positions", "prefix"), *found, strict=True):
        finite = truth.isfinite()
        assert torch.equal(ours.isfinite(), finite) and finite.all() == (name in ("weight", "bias")), name
        assert_no_worse(name, ours[finite], eager[finite], truth[finite], dtype)


@pytest.mark.parametrize("backend", ["op", "reference"])
def test_a_gradient_of_kept_tokens_that_overflows_does_not_reach_the_mask_token(backend):
    x, ids, token = torch.randn(2, 4, 3), plain.shuffled(2, 6, torch.empty(0)), torch.randn(3)
    dout = torch.randn(2, 7, 3)
    kept = (ids < 3).nonzero()[0]
    bwd = torch.ops.fastssl.restore_tokens_bwd if backend == "op" else restore_reference.restore_tokens_bwd
    calm = bwd(dout, ids, 3, 1, [True, True])
    dout[kept[0], 1 + kept[1]] = INF
    dx, dtoken = bwd(dout, ids, 3, 1, [True, True])
    assert torch.equal(dtoken, calm[1]) and (dx != calm[0]).sum() == 3
    assert torch.equal(F.restore_tokens(x, ids, token).isfinite(), torch.ones(2, 7, 3, dtype=torch.bool))


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("value", [NAN, INF])
def test_rows_of_weight_0_have_gradient_0_whatever_comes_from_above(value, one_pass):
    images, pred, mask = torch.rand(2, 3, 4, 6), torch.randn(2, 6, 12), (torch.rand(2, 6) < 0.5).float()
    mask[0, 0] = 1
    if one_pass:
        pred.requires_grad_()
        (dpred,) = torch.autograd.grad(F.masked_patch_loss(images, pred, mask, 2), pred, torch.tensor(value))
    else:
        how = (2, 2, True, False, 1e-6, False)
        _, total, stats = torch.ops.fastssl.patch_loss_fwd(images, pred, mask, None, *how)
        dpred = torch.ops.fastssl.patch_loss_bwd(torch.tensor(value), total, stats, images, pred, mask, None, *how)
    assert not dpred[mask == 0].any() and not dpred[mask == 1].isfinite().any()


# --- without data ----------------------------------------------------------------------------------------------------------


def whole_calls():
    """Every public function once, tensors made where it is called."""
    ids, x, images = torch.zeros(2, 3, dtype=torch.int64), torch.rand(2, 4, 5), torch.rand(2, 3, 4, 4)
    order = torch.arange(4).expand(2, 4)
    text, special, count = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.bool), torch.full((2,), 3)
    weight, pos, cls = torch.rand(5, 3, 2, 2), torch.rand(1, 5, 5), torch.rand(1, 1, 5)
    return {
        "mask_ids": lambda: F.mask_ids((2, 4), noise=x[:, :, 0]),
        "random_masking": lambda: F.random_masking(x, 0.5),
        "random_token_mask": lambda: F.random_token_mask((2, 4), noise=x[:, :, 0]),
        "gather_tokens": lambda: F.gather_tokens(x, ids),
        "embed_visible": lambda: F.embed_visible(images, weight, ids, cls[0, 0], pos_embed=pos, prefix_tokens=cls),
        "restore_tokens": lambda: F.restore_tokens(x[:, :3], order, cls, pos_embed=pos),
        "masked_patch_loss": lambda: F.masked_patch_loss(images, torch.rand(2, 4, 12).requires_grad_(), x[:, :, 0], 2),
        "named patches": lambda: F.masked_patch_loss(images, torch.rand(2, 3, 12).to(images), None, 2, ids=ids),
        "patchify": lambda: F.unpatchify(F.patchify(images, 2), 2),
        "block_mask": lambda: masking.block_mask(2, (5, 5), count),
        "span_mask": lambda: masking.span_mask(2, 30, lengths=count),
        "mask_tokens": lambda: masking.mask_tokens(text, mask_id=1, vocab_size=9, special=special),
        "corrupt_spans": lambda: masking.corrupt_spans(text, sentinel_start=99, eos_id=1),
        "grid_mask": lambda: masking.grid_mask(2, (2, 2), noise=x[:, :, 0]),
        "tube_mask": lambda: masking.tube_mask(2, 3, 4, noise=x[:, :, 0]),
        "multi_block_mask": lambda: masking.multi_block_mask(2, (8, 8), seed=1, context_keep=9, device=x.device),
    }


def shapes(found):
    return [(t.shape, t.dtype) for t in ((found,) if isinstance(found, torch.Tensor) else found)]


@pytest.mark.parametrize("name", whole_calls())
def test_tensors_without_data_are_not_read(name):
    expected = shapes(whole_calls()[name]())
    with FakeTensorMode():
        found = whole_calls()[name]()
        assert shapes(found) == expected
        if name == "masked_patch_loss":
            found.backward()
    with torch.device("meta"):
        found = whole_calls()[name]()
    assert shapes(found) == expected and all(t.is_meta for t in ((found,) if isinstance(found, torch.Tensor) else found))


@pytest.mark.parametrize("name", ["embed_visible", "restore_tokens", "masked_patch_loss", "mask_tokens", "gather_tokens"])
def test_fake_tensors_beside_real_ones_are_refused(name):
    mode, x, ids = FakeTensorMode(), torch.rand(2, 4, 12), torch.zeros(2, 4, dtype=torch.int64)
    images = torch.rand(2, 3, 4, 4)
    calls = {
        "embed_visible": lambda: F.embed_visible(images, torch.rand(5, 3, 2, 2), mode.from_tensor(ids)),
        "restore_tokens": lambda: F.restore_tokens(x, torch.arange(4).expand(2, 4), mode.from_tensor(torch.rand(12))),
        "masked_patch_loss": lambda: F.masked_patch_loss(images, mode.from_tensor(x), torch.ones(2, 4), 2),
        "mask_tokens": lambda: masking.mask_tokens(mode.from_tensor(ids), mask_id=1, vocab_size=9, seed=3),
        "gather_tokens": lambda: F.gather_tokens(mode.from_tensor(x), ids),
    }
    with pytest.raises(ValueError, match=f"{name}: .* must both be fake tensors or both have data"):
        calls[name]()


def test_blocks_of_a_batch_need_numbers_where_nothing_can_be_read():
    with FakeTensorMode(), pytest.raises(NotImplementedError, match="multi_block_mask: seed must be given as a number"):
        masking.multi_block_mask(2, (8, 8), context_keep=9)
    with FakeTensorMode(), pytest.raises(NotImplementedError, match="multi_block_mask: context_keep must be given as a number"):
        masking.multi_block_mask(2, (8, 8), seed=1, device="cpu")


# --- refusals --------------------------------------------------------------------------------------------------------------

X, IDS, IMAGES, WEIGHT = torch.rand(2, 6, 4), torch.tensor([[0, 5], [1, 4]]), torch.rand(2, 3, 4, 6), torch.rand(5, 3, 2, 2)
PRED, MASK, RESTORE, ONE = torch.rand(2, 6, 12), torch.ones(2, 6), torch.arange(6).expand(2, 6), torch.rand(4, 1, 1, 1)
LOSS = lambda **how: F.masked_patch_loss(**({"images": IMAGES, "pred": PRED, "mask": MASK, "patch_size": 2} | how))  # noqa: E731
EMBED = lambda **how: F.embed_visible(**({"images": IMAGES, "weight": WEIGHT, "ids": IDS} | how))  # noqa: E731
JEPA, TEXT = partial(masking.multi_block_mask, 2, (8, 8)), partial(masking.mask_tokens, mask_id=1, vocab_size=9)
TWICE = torch.tensor([[0, 1, 1]] * 2)
SPARSE, MKLDNN, NESTED = X.to_sparse(), X.to_mkldnn(), torch.nested.nested_tensor(list(X), layout=torch.jagged)
REFUSED = {
    "0-dim bias": (ValueError, r"bias must have shape \(5,\), got \(\)", lambda: EMBED(bias=torch.tensor(0.5))),
    "bias of one": (ValueError, r"bias must have shape \(5,\), got \(1,\)", lambda: EMBED(bias=torch.rand(1))),
    "0-dim positions": (ValueError, r"pos_embed must have .* got \(\)", lambda: EMBED(pos_embed=torch.tensor(0.5))),
    "positions of one row": (ValueError, r"pos_embed must have .* got \(5,\)", lambda: EMBED(pos_embed=torch.rand(5))),
    "positions of 2 samples": (ValueError, "pos_embed must have", lambda: EMBED(pos_embed=torch.rand(2, 6, 5))),
    "prefix list": (TypeError, "prefix_tokens must be a float tensor", lambda: EMBED(prefix_tokens=[1])),
    "0-dim prefix": (ValueError, r"prefix_tokens must have .* got \(\)", lambda: EMBED(prefix_tokens=torch.tensor(0.5))),
    "prefix of 2 samples": (ValueError, "prefix_tokens must have", lambda: EMBED(prefix_tokens=torch.rand(2, 1, 5))),
    "float8 bias": (TypeError, "bias must be float32", lambda: EMBED(bias=torch.rand(5).to(torch.float8_e4m3fn))),
    "complex bias": (TypeError, "bias must be float32", lambda: EMBED(bias=torch.rand(5).cfloat())),
    "0-dim mask token": (ValueError, "mask_token", lambda: F.restore_tokens(X[..., :1], RESTORE, torch.tensor(0.5))),
    "positions folded": (ValueError, "pos_embed", lambda: F.restore_tokens(X, RESTORE, X[0, 0], pos_embed=torch.rand(7, 1, 4))),
    "no permutation": (ValueError, r"ids_restore .* permutation of 0 .. 5", lambda: F.restore_tokens(X, RESTORE // 2 * 2, X[0, 0])),
    "one id twice": (ValueError, "permutation.*got .0, 1, 1", lambda: F.restore_tokens(X, TWICE, X[0, 0], num_prefix_tokens=4)),
    "mask with gradient": (NotImplementedError, "mask must not require", lambda: LOSS(mask=MASK.clone().requires_grad_())),
    "images with gradient": (NotImplementedError, "images must not req", lambda: LOSS(images=IMAGES.clone().requires_grad_())),
    "flag list": (TypeError, "norm_pix_loss must be True or False, got list", lambda: LOSS(norm_pix_loss=[])),
    "flag text": (TypeError, "mask_class_token must be True or False", lambda: F.random_token_mask((2, 3), 0.5, "no")),
    "length 10.5": (TypeError, "num_kept: length must be a whole number", lambda: F.num_kept(10.5, 0.5, "mask_floor")),
    "generator 1": (TypeError, "mask_ids: generator must be a torch.Generator", lambda: F.mask_ids((2, 4), generator=1)),
    "generator text": (TypeError, "random_token_mask: generator must be", lambda: F.random_token_mask((2, 4), generator="cpu")),
    "device text": (ValueError, "mask_ids: device must be a torch.device", lambda: F.mask_ids((2, 4), device="nowhere")),
    "device number": (TypeError, "mask_ids: device must be a torch.device", lambda: F.mask_ids((2, 4), device=3.5)),
    "size text": (ValueError, "random_token_mask: size must be", lambda: F.random_token_mask(("3", "10"))),
    "image size": (TypeError, r"unpatchify: image_size must be .* got \(\)", lambda: F.unpatchify(PRED, 2, image_size=())),
    "image size text": (TypeError, "unpatchify: image_size must be", lambda: F.unpatchify(PRED, 2, image_size="46")),
    "image size 2.5": (ValueError, "unpatchify: image_size must be", lambda: F.unpatchify(PRED, 2, image_size=(4, 2.5))),
    "huge ratio": (ValueError, "mask_ids: mask_ratio must be", lambda: F.mask_ids((2, 4), 10**400)),
    "huge aspect": (ValueError, "multi_block_mask: target_aspect", lambda: JEPA(target_aspect=(1, 10**400))),
    "sparse noise": (TypeError, "noise must be a dense tensor", lambda: F.mask_ids((2, 6), noise=SPARSE)),
    "mkldnn tokens": (TypeError, "gather_tokens: x must be a dense tensor", lambda: F.gather_tokens(MKLDNN, IDS)),
    "nested tokens": (TypeError, "gather_tokens: x must be a dense tensor", lambda: F.gather_tokens(NESTED, IDS)),
    "sparse mask": (TypeError, "mask must be a dense tensor", lambda: LOSS(mask=MASK.to_sparse())),
    "sparse ids": (TypeError, "mask_tokens: ids must be a dense", lambda: TEXT(IDS.to_sparse())),
    "sparse seed": (TypeError, "seed must be a dense", lambda: masking.mask_ids((2, 4), seed=torch.tensor([3]).to_sparse())),
    "sparse goals": (TypeError, "num_masked must be a dense", lambda: masking.block_mask(2, (5, 5), IDS[0].to_sparse())),
    "nested lengths": (TypeError, "lengths must be a dense", lambda: masking.span_mask(2, 20, lengths=NESTED)),
    "inner op": (ValueError, "^tube_mask: mask_ratio must be", lambda: masking.tube_mask(2, 3, 4, 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("error, message, call", REFUSED.values(), ids=REFUSED)
def test_refused_in_words(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_soft_mask_that_is_being_learnt_may_be_evaluated():
    with torch.no_grad():
        assert torch.equal(LOSS(mask=MASK.clone().requires_grad_()), LOSS())


def test_a_call_that_is_refused_draws_no_random_numbers():
    g = torch.Generator().manual_seed(3)
    calls = [
        lambda: F.mask_ids((2, 4), 1.5, generator=g),
        lambda: F.mask_ids((2, 4), generator=g, device="meta"),
        lambda: F.random_masking(X, 0.5, generator=g, rounding="up"),
        lambda: torch.func.grad(lambda x: F.random_masking(x, 0.5, generator=g)[0].sum())(X),
        lambda: F.random_token_mask((2, 4), 0.5, 1, generator=g),
        lambda: masking.grid_mask(2, (4, 4), unit=3, generator=g),
        lambda: masking.block_mask(2, (4, 4), 5, exact=1, generator=g),
        lambda: masking.block_mask(2, (4, 4), torch.tensor([1, 99]), generator=g),
        lambda: masking.block_mask(2, (4, 4), torch.tensor([1, 2], device="meta"), generator=g),
        lambda: masking.multi_block_mask(2, (8, 8), device="meta", generator=g),
        lambda: masking.span_mask(2, 9, span=3, lengths=torch.tensor([1, 99]), generator=g),
        lambda: masking.span_mask(2, 9, span=3, lengths=torch.tensor([1, 2]), device="meta", generator=g),
        lambda: masking.mask_tokens(IDS, mask_id=1, vocab_size=9, special=IDS, generator=g),
        lambda: masking.corrupt_spans(IDS, sentinel_start=-1, eos_id=None, generator=g),
    ]
    before = g.get_state(), torch.get_rng_state()
    for call in calls:
        with pytest.raises((TypeError, ValueError, NotImplementedError)):
            call()
        assert torch.equal(before[0], g.get_state()) and torch.equal(before[1], torch.get_rng_state())


# --- ops called without Python's checks --------------------------------------------------------------------------------------


@pytest.mark.skipif(_C is None, reason="no C++ kernels here")
def test_kernels_refuse_tensors_that_are_too_short():
    """What a call from elsewhere could make them read beside a tensor."""
    for op, words, arguments in short_calls(op_calls() | mask_calls()):
        try:
            getattr(torch.ops.fastssl, op)(*arguments)
        except (RuntimeError, ValueError):
            continue
        pytest.fail(f"{words}: accepted")


# --- the whole way with all patches removed, and blocks that fit ---------------------------------------------------------------


def test_all_patches_removed_and_back():
    images, cls, token = torch.randn(2, 3, 4, 6), torch.randn(1, 1, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    weight, pos, head = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3, 2, 2), (1, 7, 5), (5, 12)))
    wanted, found = (cls, token, pos, head, weight), F.mask_ids((2, 6), 1.0, seed=1)
    assert found.ids_keep.shape == (2, 0) and (found.mask == 1).all()
    results = []
    for form in (F, plain):
        z = form.embed_visible(images, weight, found.ids_keep, pos_embed=pos, prefix_tokens=cls)
        full = form.restore_tokens(z, found.ids_restore, token, pos_embed=pos)
        loss = getattr(form, "masked_patch_loss", getattr(form, "patch_loss", None))(images, full[:, 1:] @ head, found.mask, 2)
        results.append([loss, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
    assert not results[0][-1].any(), "no patch was embedded"
    kept, removed = F.random_token_mask((3, 5), 1.0)
    assert kept.tolist() == [[0]] * 3 and torch.equal(removed.sort(1).values, torch.arange(1, 5).expand(3, 4))
    assert [t.shape[1] for t in F.random_token_mask((3, 5), 1.0, mask_class_token=True)] == [0, 5]


def test_ids_that_are_no_permutation_have_the_exact_gradient_where_they_are_not_looked_at():
    """As on a GPU: a compiled graph."""
    ids = torch.randint(0, 10, (4, 10))
    x, token, weight = torch.randn(4, 5, 3, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True), torch.randn(4, 11, 3)
    compiled = torch.compile(lambda x, token: F.restore_tokens(x, ids, token), fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(call, (x, token), weight) for call in (compiled(x, token), plain.restore_tokens(x, ids, token))]
    for ours, eager in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager)


def test_a_block_fits_where_one_is_drawn():
    """Against 20,000 draws of area and aspect for each of 60 grids and limits."""
    generator, answers = torch.Generator().manual_seed(5), []

    def draw(low: float, high: float, count: int = 1):
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    for turn in range(60):
        height, width, least, most = (int(draw(low, high)) for low, high in ((1, 9), (1, 9), (1, 25), (25, 40)))
        low, wide = draw(-2.5, 2.5), draw(0, 3) if turn % 3 else 0.0
        area, aspect = draw(least, most, 20_000), (low + wide * draw(0, 1, 20_000)).exp()
        h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        drawn = bool(((h < height) & (w < width) & (h * w >= 1) & (h * w <= most)).any())
        answers.append(drawn)
        assert _fits((height, width), least, most, float(low.exp()), float((low + wide).exp())) == drawn, (
            height,
            width,
            least,
            most,
        )
    assert 10 < sum(answers) < 50


def test_samples_that_lose_less_than_the_smallest_block():
    """By default, and where a tensor says so, one block of about that many; a number and the tensor of that number agree."""
    for goal in (1, 2, 3):
        mask = masking.block_mask(300, (6, 6), goal, seed=1)
        count = mask.sum((1, 2))
        assert (count <= goal).all() and (count == 0).sum() <= 3
        assert torch.equal(mask, masking.block_mask(300, (6, 6), torch.full((300,), goal), seed=1))
    count = masking.block_mask(300, (14, 14), torch.full((300,), 20), min_block=60, seed=1).sum((1, 2))
    assert count.max() == 20 and count.double().mean() > 15
