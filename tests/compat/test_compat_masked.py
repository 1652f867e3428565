"""Drop-ins for masked image modelling beside what they replace: ViTMAE of transformers, MAE, solo-learn's loss, lightly."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.testing import assert_close

import fastssl
from fastssl.compat import lightly, mae, solo
from fastssl.testing import masking as eager
from fastssl.testing.compare import assert_no_worse, relative_error
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def shaken(model):
    """No parameter is zero: class and mask tokens, biases and positions must all matter."""
    for p in model.parameters():
        p.add_(torch.randn_like(p), alpha=0.1)
    return model


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(ours, theirs, truth, dtype=torch.float32):
    """Error against error with float64, for every parameter; None where there is none."""
    assert any(g is not None for g in truth.values())
    for name, want in truth.items():
        assert (ours[name] is None) == (theirs[name] is None) == (want is None), name
        if want is not None:
            assert_no_worse(name, ours[name], theirs[name], want, dtype)


# --- transformers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_mae():
    return library("transformers.models.vit_mae.modeling_vit_mae")


def hf_model(vit_mae, **options):
    options = {"image_size": 32, "patch_size": 8, "num_channels": 3, "hidden_size": 24, "decoder_hidden_size": 16} | options
    depth = {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "num_attention_heads": 4, "decoder_num_attention_heads": 4}
    config = vit_mae.ViTMAEConfig(**options, **depth, intermediate_size=32, decoder_intermediate_size=24, hidden_act="gelu")
    return shaken(vit_mae.ViTMAEForPreTraining(config)).eval()


def hf_inputs(model, count=3, size=None):
    config = model.config
    height, width = size or (config.image_size, config.image_size)
    length = (height // config.patch_size) * (width // config.patch_size)
    return torch.randn(count, config.num_channels, height, width), torch.rand(count, length)


def hf_step(model, pixels, **how):
    model.zero_grad(set_to_none=True)
    out = model(pixels.to(model.dtype), **how)
    out.loss.backward()
    return out, gradients(model)


CONFIGS = [
    {"mask_ratio": 0.75, "norm_pix_loss": False},
    {"mask_ratio": 0.75, "norm_pix_loss": True, "image_size": 28, "patch_size": 4, "num_channels": 1, "hidden_size": 32},
    {"mask_ratio": 0.9, "norm_pix_loss": True, "image_size": 40, "patch_size": 4},  # 100 patches, of which 9 stay
    {"mask_ratio": 0.9, "norm_pix_loss": False, "image_size": 56, "patch_size": 4, "num_channels": 1},  # 196, 19
    {"mask_ratio": 0.9, "norm_pix_loss": True, "image_size": 16},  # 4, none
    {"mask_ratio": 0.5, "norm_pix_loss": True, "hidden_size": 48, "decoder_hidden_size": 40, "qkv_bias": False},
    {"mask_ratio": 0.05, "norm_pix_loss": False, "image_size": 48, "patch_size": 16},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['mask_ratio']}-{c.get('image_size', 32)}")
@pytest.mark.parametrize("positions", [False, True], ids=["frozen", "trained"])
def test_vit_mae_is_the_unpatched_model(vit_mae, config, positions):
    """ids and mask bit for bit, logits and loss to 1e-6, all gradients error against error."""
    model = hf_model(vit_mae, **config)
    model.vit.embeddings.position_embeddings.requires_grad_(positions)
    model.decoder.decoder_pos_embed.requires_grad_(positions)
    pixels, noise = hf_inputs(model)
    theirs, their_gradients = hf_step(model, pixels, noise=noise)
    true, truth = hf_step(copy.deepcopy(model).double(), pixels, noise=noise)
    with fastssl.patch("transformers"):
        ours, our_gradients = hf_step(model, pixels, noise=noise)
    assert type(ours) is type(theirs)
    assert torch.equal(ours.ids_restore, theirs.ids_restore) and ours.ids_restore.dtype == torch.int64
    assert torch.equal(ours.mask, theirs.mask) and ours.mask.dtype == torch.float32
    for name in ("loss", "logits"):
        got, want = ours[name], theirs[name]
        assert got.dtype == want.dtype and got.shape == want.shape
        assert relative_error(got, want) < 1e-6
        assert_no_worse(name, got, want, true[name], torch.float32)
    assert_same_gradients(our_gradients, their_gradients, truth)


def test_vit_mae_draws_the_noise_of_its_seed(vit_mae):
    model = hf_model(vit_mae)
    pixels, _ = hf_inputs(model)
    torch.manual_seed(11)
    theirs, after = model(pixels), torch.rand(1)
    torch.manual_seed(11)
    with fastssl.patch("transformers"):
        ours = model(pixels)
    assert torch.equal(torch.rand(1), after)  # as many numbers were drawn
    assert torch.equal(ours.ids_restore, theirs.ids_restore)
    assert_close(ours.loss, theirs.loss)


def test_vit_mae_embeds_the_visible_patches_only(vit_mae, monkeypatch):
    model = hf_model(vit_mae)
    pixels, noise = hf_inputs(model)
    want = model(pixels, noise=noise).logits
    with fastssl.patch("transformers"):
        monkeypatch.setattr(nn.Conv2d, "forward", None)  # calling a convolution raises
        assert_close(model(pixels, noise=noise).logits, want)


@pytest.mark.filterwarnings("ignore:.*checkpointing")
def test_vit_mae_keeps_its_outputs_and_switches(vit_mae):
    """hidden states, attentions, tuples, checkpointing, images of any sides with interpolated positions."""
    model = hf_model(vit_mae, attn_implementation="eager")
    square, tall, uneven = hf_inputs(model), hf_inputs(model, size=(40, 24)), hf_inputs(model, size=(37, 29))
    calls = [
        (model, square, {"output_hidden_states": True, "output_attentions": True}),
        (model, square, {"return_dict": False}),
        (model, square, {"interpolate_pos_encoding": True}),
        (model, tall, {"interpolate_pos_encoding": True}),
        (model.vit, uneven, {"interpolate_pos_encoding": True}),  # the convolution leaves out the incomplete patches
    ]
    for part, (pixels, noise), how in calls:
        theirs = part(pixels, noise=noise, **how)
        with fastssl.patch("transformers"):
            ours = part(pixels, noise=noise, **how)
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for got, want in zip(*((o if isinstance(o, tuple) else o.to_tuple()) for o in (ours, theirs)), strict=True):
            assert_close(got, want, rtol=1e-5, atol=1e-6)
    model.train()
    want = hf_step(model, square[0], noise=square[1])[1]
    model.gradient_checkpointing_enable()
    with fastssl.patch("transformers"):
        got = hf_step(model, square[0], noise=square[1])[1]
    assert_close(*({name: g for name, g in side.items() if g is not None} for side in (got, want)), rtol=1e-4, atol=1e-6)


def test_vit_mae_under_autocast(vit_mae):
    """The residual stream stays float32; values as wrong against float64 as theirs."""
    model = hf_model(vit_mae, norm_pix_loss=True)
    pixels, noise = hf_inputs(model, count=8)
    true, truth = hf_step(copy.deepcopy(model).double(), pixels, noise=noise)
    results = []
    for patched in (True, False):
        with fastssl.patch("transformers") if patched else nullcontext(), torch.autocast("cpu", torch.bfloat16):
            embedded = model.vit.embeddings(pixels, noise=noise)[0]
            results.append((embedded.dtype, *hf_step(model, pixels, noise=noise)))
    (our_dtype, ours, our_gradients), (their_dtype, theirs, their_gradients) = results
    assert our_dtype == their_dtype == torch.float32
    assert ours.logits.dtype == theirs.logits.dtype and ours.loss.dtype == theirs.loss.dtype
    for name in ("loss", "logits"):
        assert_no_worse(name, ours[name], theirs[name], true[name], torch.bfloat16)
    assert_same_gradients(our_gradients, their_gradients, truth, torch.bfloat16)


def test_vit_mae_leaves_what_others_watch_or_replace(vit_mae):
    """Hooks on the patch embedding and a masking of the user's own are called, with the same result."""
    model = hf_model(vit_mae)
    pixels, noise = hf_inputs(model)
    embeddings, seen = model.vit.embeddings, []
    want = model(pixels, noise=noise).logits
    with fastssl.patch("transformers"):
        for watched in (embeddings.patch_embeddings, embeddings.patch_embeddings.projection):
            handle = watched.register_forward_hook(lambda *_: seen.append("hook"))
            assert_close(model(pixels, noise=noise).logits, want)
            handle.remove()
        theirs = embeddings.random_masking
        embeddings.random_masking = lambda x, noise=None: (seen.append(tuple(x.shape)), theirs(x, noise))[1]
        assert_close(model(pixels, noise=noise).logits, want)
        del embeddings.random_masking
        model(pixels, noise=noise)
    assert seen == ["hook", "hook", (3, 16, 24)]


def test_vit_mae_refusals_and_empty_masks(vit_mae):
    model = hf_model(vit_mae)
    pixels, noise = hf_inputs(model)
    with fastssl.patch("transformers"):
        for wrong, match in (
            ({"pixel_values": pixels[:, :, :24]}, "sides"),
            ({"pixel_values": pixels[:, :2]}, "channels"),
            ({"pixel_values": pixels, "noise": noise[:, 1:]}, "noise"),
        ):
            with pytest.raises(ValueError, match=match):
                model(**wrong)
        model.config.mask_ratio = 0.0
        out = model(pixels, noise=noise)
        assert out.loss == 0 and out.logits.isfinite().all()


# --- facebookresearch/mae -------------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """The attributes and methods that the published class has, with the eager forms of the tests."""

    def __init__(self, size=16, patch=4, channels=3, width=24, decoder_width=16, norm_pix_loss=False):
        super().__init__()
        timm = library("timm.models.vision_transformer")
        self.patch_embed = timm.PatchEmbed(size, patch, channels, width)
        length = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, length + 1, width), requires_grad=False)
        self.blocks = nn.ModuleList([timm.Block(width, 4, qkv_bias=True) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, length + 1, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([timm.Block(decoder_width, 2, qkv_bias=True)])
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, channels * patch**2)
        self.norm_pix_loss = norm_pix_loss
        shaken(self)

    def random_masking(self, x, mask_ratio):
        return eager.random_masking(x, mask_ratio, torch.rand(x.shape[:2]))

    def patchify(self, imgs):
        return eager.patches(imgs, *self.patch_embed.patch_size)

    def forward_encoder(self, x, mask_ratio):
        tokens, mask, ids_restore = self.random_masking(self.patch_embed(x) + self.pos_embed[:, 1:], mask_ratio)
        tokens = torch.cat([(self.cls_token + self.pos_embed[:, :1]).repeat(len(x), 1, 1), tokens], 1)
        return self.norm(nn.Sequential(*self.blocks)(tokens)), mask, ids_restore

    def forward_decoder(self, x, ids_restore):
        x = eager.restore_tokens(self.decoder_embed(x), ids_restore, self.mask_token, pos_embed=self.decoder_pos_embed)
        return self.decoder_pred(self.decoder_norm(nn.Sequential(*self.decoder_blocks)(x)))[:, 1:]

    def forward_loss(self, imgs, pred, mask):
        return eager.patch_loss(imgs, pred, mask, self.patch_embed.patch_size, norm_pix_loss=self.norm_pix_loss)

    def forward(self, imgs, mask_ratio=0.75):
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask


METHODS = ("random_masking", "patchify", "forward_encoder", "forward_decoder", "forward_loss")


def patched(model, methods):
    model.__class__ = type("Patched", (Autoencoder,), {name: getattr(mae, name) for name in methods})
    return model


def mae_step(model, images, ratio):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss, pred, mask = model(images.to(model.mask_token.dtype), ratio)
    loss.backward()
    return loss, pred, mask, gradients(model)


@pytest.mark.parametrize("ratio", [0.75, 0.9, 0.3])
@pytest.mark.parametrize("shape", [{}, {"size": 40, "channels": 1, "norm_pix_loss": True}, {"width": 48, "norm_pix_loss": True}])
@pytest.mark.parametrize("methods", [METHODS, ("random_masking",), ("forward_encoder",), ("forward_loss", "forward_decoder")])
def test_mae_methods_are_the_published_ones(ratio, shape, methods):
    """All set at once or some of them: same seed, same mask; values and gradients error against error."""
    model = Autoencoder(**shape)
    images = torch.randn(3, shape.get("channels", 3), *(2 * (shape.get("size", 16),)))
    assert torch.equal(mae.patchify(model, images), model.patchify(images))
    assert torch.equal(mae.unpatchify(model, model.patchify(images)), images)
    theirs, truth = mae_step(model, images, ratio), mae_step(copy.deepcopy(model).double(), images, ratio)
    ours = mae_step(patched(copy.deepcopy(model), methods), images, ratio)
    for name, got, want, true in zip(("loss", "pred"), ours, theirs, truth, strict=False):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert_no_worse(name, got, want, true, torch.float32)
    assert torch.equal(ours[2], theirs[2]) and ours[2].dtype == torch.float32
    assert_same_gradients(ours[3], theirs[3], truth[3])


@pytest.mark.parametrize("how", ["nothing", "hook", "hook of all", "norm", "own forward"])
def test_mae_embeds_the_visible_patches_only_where_nothing_else_happens(how, monkeypatch, request):
    model, ran = patched(Autoencoder(), METHODS), []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (ran.append(1), forward(self, x))[1])
    if how.startswith("hook"):
        register = register_module_forward_hook if how == "hook of all" else model.patch_embed.register_forward_hook
        request.addfinalizer(register(lambda *_: None).remove)
    elif how == "norm":
        model.patch_embed.norm = nn.LayerNorm(24)
    elif how == "own forward":
        model.patch_embed.proj.forward = model.patch_embed.proj.forward
    model(torch.randn(2, 3, 16, 16))
    assert bool(ran) == (how != "nothing")
    with pytest.raises(AssertionError, match="height"):
        model(torch.randn(2, 3, 20, 20))


# --- solo-learn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [None, False, True])
def test_solo_mae_loss(normalize):
    images, pred = torch.randn(2, 3, 16, 16), torch.randn(2, 16, 48, requires_grad=True)
    mask = (torch.rand(2, 16) < 0.6).float()
    how = {} if normalize is None else {"norm_pix_loss": normalize}
    want = eager.patch_loss(images, pred, mask, 4, norm_pix_loss=normalize is not False)
    got = solo.mae_loss_func(images, pred, mask, 4, **how)
    assert_close(got, want)
    assert_close(*(torch.autograd.grad(loss, pred)[0] for loss in (got, want)))
    assert solo.mae_loss_func(images, pred, 0 * mask, 4) == 0
    with pytest.raises(ValueError, match="pred"):
        solo.mae_loss_func(images, pred[:, 1:], mask, 4)


# --- lightly.models.utils -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def utils():
    return library("lightly.models.utils")


def both(utils, name, *inputs, **how):
    """Result and gradients of lightly's function and of ours, on leaves of their own."""
    results = []
    for function in (getattr(lightly, name), getattr(utils, name)):
        leaves = [t.clone().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t for t in inputs]
        out = function(*leaves, **how)
        wanted = [t for t in leaves if torch.is_tensor(t) and t.requires_grad]
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
        how_grad = {"materialize_grads": True, "allow_unused": True}
        results.append((out.detach(), *(torch.autograd.grad(out, wanted, weight, **how_grad) if wanted else ())))
    return results


@pytest.mark.parametrize(("rows", "length", "ratio", "seed"), itertools.product((1, 3), (1, 17, 101), (0.0, 0.6, 0.9, 1), (0, 1)))
def test_lightly_token_masks_of_a_seed(utils, rows, length, ratio, seed):
    for class_token in (False, True):
        torch.manual_seed(seed)
        want = utils.random_token_mask((rows, length), ratio, mask_class_token=class_token)
        torch.manual_seed(seed)
        got = lightly.random_token_mask((rows, length), ratio, mask_class_token=class_token)
        assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "length", "width", "count"), [(2, 7, 5, 3), (1, 1, 1, 1), (3, 9, 4, 9), (2, 6, 8, 0)])
def test_lightly_tokens_at_an_index(utils, rows, length, width, count, dtype):
    """Same values, dtypes and gradients; a float32 mask token among bfloat16 tokens too."""
    tokens, token = torch.randn(rows, length, width).to(dtype), torch.randn(1, 1, width)
    index = torch.rand(rows, length).argsort(1)[:, :count]
    mask = torch.rand(rows, length) < 0.5
    calls = [
        ("get_at_index", tokens, index),
        ("get_at_index", torch.arange(rows * length * 2).reshape(rows, length, 2), index),
        ("set_at_index", tokens, index, torch.randn(rows, count, width).to(dtype)),
        ("set_at_index", tokens, index, 1),
        *(("mask_at_index", tokens, index, token.to(kind)) for kind in (dtype, torch.float32)),
        *(("mask_bool", tokens, kind, token.to(dtype)) for kind in (mask, mask.long(), mask.float() * 0.3)),
        ("repeat_token", token.to(dtype), (rows, length)),
    ]
    for name, *inputs in calls:
        close = 2e-2 if dtype == torch.bfloat16 else 1e-6  # the mask token's gradient is a sum
        assert_close(*both(utils, name, *inputs), rtol=close, atol=close)


def test_lightly_patches_and_their_normalization(utils):
    images = torch.randn(2, 3, 12, 12)
    patches = utils.patchify(images, 4)
    for call in (("patchify", images, 4), ("unpatchify", patches, 4), ("unpatchify", utils.patchify(images[:, :1], 2), 2, 1)):
        assert_close(*both(utils, *call), rtol=0, atol=0)
    for how in ({}, {"dim": 1}, {"dim": -2, "eps": 0.1}):
        assert_close(*both(utils, "normalize_mean_var", patches, **how), rtol=1e-5, atol=1e-6)


def test_lightly_functions_refuse_in_words():
    tokens, index, token = torch.randn(2, 5, 4), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1, 1, 4)
    for call, match in (
        (lambda: lightly.get_at_index(tokens, index + 5), r"ids must be in \[0, 5\)"),
        (lambda: lightly.set_at_index(tokens, index - 1, torch.zeros(2, 3, 4)), r"index must be in \[0, 5\)"),
        (lambda: lightly.set_at_index(tokens, index, torch.zeros(2, 2, 4)), r"value must have shape \(2, 3, 4\)"),
        (lambda: lightly.set_at_index(tokens, index, torch.zeros(2, 3, 4).double()), "same dtype"),
        (lambda: lightly.mask_at_index(tokens, index, token[..., 1:]), r"mask_token must have shape \(1, 1, 4\)"),
        (lambda: lightly.mask_bool(tokens, torch.zeros(2, 4), token), r"mask must be a tensor \(2, 5\)"),
        (lambda: lightly.unpatchify(tokens, 2), "12 entries"),
        (lambda: lightly.patchify(torch.randn(1, 3, 5, 4), 2), "multiples"),
        (lambda: lightly.repeat_token(token[0], (1, 2)), "token"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            call()
