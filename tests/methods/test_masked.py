"""MAE, SimMIM, Inpainting and BERT: their losses against the usual eager code, every backbone they take, what they refuse."""

import copy
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.functional import patchify
from fastssl.masking import grid_mask, mask_tokens
from fastssl.methods import BERT, MAE, Inpainting, SimMIM, VisionTransformer
from fastssl.methods._positions import sine_positions
from fastssl.methods._timm import embed_patches, image_shape, run_blocks
from fastssl.testing import masking as eager
from fastssl.testing.compare import assert_no_worse
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")

NO_TIMM = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
TIMM = {
    "plain": {},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3, "init_values": 0.1},
    "no positions of the prefix": {"no_embed_class": True, "reg_tokens": 2},
    "norm_pre": {"pre_norm": True},
    "norm of patches": {"embed_norm_layer": "layernorm", "no_embed_class": True},
    "no positions": {"pos_embed": "none", "qk_norm": True},
}
BACKBONES = ["vit", "vit with class token", *(pytest.param(name, marks=NO_TIMM) for name in TIMM)]


def built(name: str) -> nn.Module:
    """A backbone of 16 channels for images (3, 8, 12), patches of 2."""
    torch.manual_seed(0)
    if name in TIMM:
        made = library("timm.models.vision_transformer").VisionTransformer(
            (8, 12), 2, embed_dim=16, depth=2, num_heads=2, num_classes=0, **{"global_pool": "token"} | TIMM[name]
        )
    else:
        made = VisionTransformer(
            (8, 12), 2, 16, 2, 2, class_token="class" in name, positions="sine" if "class" in name else "learned"
        )
    with torch.no_grad():
        for p in made.parameters():  # norms and biases other than 1 and 0
            p.add_(0.05 * torch.randn_like(p))
    return made


def mae(name: str = "vit", **how) -> MAE:
    backbone = built(name)
    torch.manual_seed(1)
    return MAE(backbone, **{"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2} | how)


def simmim(name: str = "vit", **how) -> SimMIM:
    backbone = built(name)
    torch.manual_seed(1)
    return SimMIM(backbone, **{"mask_size": 4} | how)


def images(count: int = 5, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(count, 3, 8, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def all_patches(backbone: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Embedded patches (N, L, E) of a convolution, without positions."""
    tokens = backbone.patch_embed.proj(x).flatten(2).transpose(1, 2)
    return getattr(backbone.patch_embed, "norm", nn.Identity())(tokens)


def with_positions(backbone: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Prefix, patches (N, L, E), positions, in either of timm's two orders."""
    prefix = [token for token in (backbone.cls_token, getattr(backbone, "reg_token", None)) if token is not None]
    prefix = [token.expand(len(tokens), -1, -1) for token in prefix]
    pos = backbone.pos_embed
    if pos is not None and pos.shape[1] == tokens.shape[1]:
        return torch.cat([*prefix, tokens + pos], 1)
    tokens = torch.cat([*prefix, tokens], 1)
    return tokens if pos is None else tokens + pos


def encoded(backbone: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = getattr(backbone, "norm_pre", nn.Identity())(x)
    for block in backbone.blocks:
        x = block(x)
    return getattr(backbone, "fc_norm", nn.Identity())(backbone.norm(x))


def eager_mae(method: MAE, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The usual code: embed all patches, add positions, shuffle, gather, encode, unshuffle, decode, loss over all patches."""
    backbone, before = method.backbone, method.backbone.num_prefix_tokens
    tokens = with_positions(backbone, all_patches(backbone, x))
    kept, mask, restore = eager.random_masking(tokens[:, before:], method.mask_ratio, noise)
    z = method.decoder_embed(encoded(backbone, torch.cat([tokens[:, :before], kept], 1)))
    y = eager.restore_tokens(z, restore, method.mask_token, num_prefix_tokens=before, pos_embed=method.decoder_pos_embed)
    for block in method.decoder_blocks:
        y = block(y)
    pred = method.decoder_pred(method.decoder_norm(y))[:, before:]
    return eager.patch_loss(x, pred, mask, method.patch_size, norm_pix_loss=method.norm_pix_loss)


def eager_simmim(method: SimMIM, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    backbone, before = method.backbone, method.backbone.num_prefix_tokens
    mask = grid_mask(len(x), method.grid, method.mask_ratio, unit=method.unit, noise=noise)
    tokens = all_patches(backbone, x)
    weight = mask[:, :, None].to(tokens.dtype)
    tokens = tokens * (1 - weight) + method.mask_token * weight
    pred = method.head(encoded(backbone, with_positions(backbone, tokens))[:, before:])
    return eager.patch_loss(x, pred, mask, method.patch_size, layout="cpq", loss="l1")


def agree(method: nn.Module, eager_form, x: torch.Tensor, noise: torch.Tensor) -> None:
    """Loss and every gradient, error against error of the eager form, and of the method in float64."""
    wide = copy.deepcopy(method).double()
    results = []
    for model, call, given in (
        (method, lambda m, x: m(x, noise=noise), x),
        (method, lambda m, x: eager_form(m, x, noise), x),
        (wide, lambda m, x: eager_form(m, x, noise), x.double()),
        (wide, lambda m, x: m(x, noise=noise), x.double()),
    ):
        names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
        loss = call(model, given)
        results.append({"loss": loss} | dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
    ours, theirs, truth, ours64 = results
    for name in truth:
        assert truth[name].norm() > 0, name
        assert_no_worse(name, ours[name], theirs[name], truth[name], torch.float32)
        assert_no_worse(name, ours64[name], truth[name], truth[name], torch.float64)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mae_is_the_usual_code(backbone):
    method = mae(backbone, norm_pix_loss=backbone == "registers").eval()
    agree(method, eager_mae, images(), torch.rand(5, 24))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_simmim_is_the_usual_code(backbone):
    method = simmim(backbone).eval()
    agree(method, eager_simmim, images(), torch.rand(5, 6))


@pytest.mark.parametrize("make", [mae, simmim])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_scale_of_pixels_is_an_affine_map(make, norm_pix_loss):
    """A method with mean and std on images is one without on scaled images; its pictures have the images' own scale."""
    how = {"norm_pix_loss": norm_pix_loss} if make is mae else {}
    plain, method, x = make(**how).eval(), make(pixel_mean=0.4, pixel_std=0.3, **how).eval(), images()
    noise, y = torch.rand(5, 24 if make is mae else 6), (x - 0.4) / 0.3
    torch.testing.assert_close(method(x, noise=noise), plain(y, noise=noise))
    torch.testing.assert_close(method.embed(x), plain.embed(y))
    (_, painted, mask), (_, wanted, _) = method.reconstruct(x, noise=noise), plain.reconstruct(y, noise=noise)
    torch.testing.assert_close(painted, wanted * 0.3 + 0.4)
    kept = mask == 0
    assert torch.equal(patchify(painted, 2)[kept], patchify(x, 2)[kept])


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mae_predicts_only_masked_for_the_same_loss(norm_pix_loss):
    method, x, noise = mae(norm_pix_loss=norm_pix_loss).double(), images(dtype=torch.float64), torch.rand(5, 24)
    parameters = [p for p in method.parameters() if p.requires_grad]
    some, sizes = torch.autograd.grad(method(x, noise=noise), parameters), []
    method.decoder_pred.register_forward_hook(lambda module, given, out: sizes.append(out.shape[1]))
    loss = method(x, noise=noise)
    method.predict_only_masked = False
    whole = method(x, noise=noise)
    assert sizes == [18, 24]
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    for a, b in zip(some, torch.autograd.grad(whole, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_patches_kept_is_the_backbone_itself(backbone):
    """The steps of the methods, on all patches in order, against the backbone's own; and ``embed`` is its pooled output."""
    model, x = built(backbone).eval(), images()
    tokens = run_blocks(model, embed_patches(model, x, torch.arange(24).expand(5, -1)))
    own = model.forward_features(x)
    own = getattr(model, "fc_norm", nn.Identity())(own)
    torch.testing.assert_close(tokens, own, rtol=1e-5, atol=1e-5)
    for method in (MAE(model, decoder_dim=8, decoder_heads=2, decoder_depth=1), SimMIM(model, mask_size=4)):
        assert torch.equal(method.eval().embed(x), model(x)) and method.embed(x).shape == (5, 16)


@NO_TIMM
def test_the_built_in_transformer_is_timms():
    """Same keys, same numbers: weights go from one to the other."""
    theirs, ours = built("plain").eval(), VisionTransformer((8, 12), 2, 16, 2, 2, class_token=True).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    assert image_shape(ours) == image_shape(theirs) == (3, 8, 12)


def test_sine_positions_are_of_the_column_then_of_the_row():
    got = sine_positions(3, 5, 8).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            angles = [place / 10000 ** (k / 2) for place in (column, row) for k in (0, 1)]
            sines, cosines = torch.tensor(angles).sin(), torch.tensor(angles).cos()
            want = torch.cat([sines[:2], cosines[:2], sines[2:], cosines[2:]])
            torch.testing.assert_close(got[row, column], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_positions(2, 2, 6)


def test_noise_of_images_that_the_cells_do_not_divide():
    method = Inpainting(Maps(), 8, corruption="noise", mask_size=3)
    assert method.reconstruct(torch.rand(2, 3, 8, 8))[2].tolist() == [[1.0], [1.0]] and method.patch_size == (8, 8)


def test_inpainting_is_its_equations():
    backbone = Maps().double()
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    method = Inpainting(backbone, 8, mask_size=2, mask_ratio=0.3).double().eval()
    noise = torch.rand(4, 16)
    removed = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    for n in range(4):
        for cell in noise[n].argsort()[int(16 * 0.7) :].tolist():
            removed[n, 0, 2 * (cell // 4) : 2 * (cell // 4) + 2, 2 * (cell % 4) : 2 * (cell % 4) + 2] = True
    corrupted = x.clone()
    for n in range(4):
        for c in range(3):
            corrupted[n, c][removed[n, 0]] = x[n, c][~removed[n, 0]].mean()
    out = method.decoder(method.backbone.forward_features(corrupted))
    torch.testing.assert_close(method(x, noise=noise), (out - x)[removed.expand_as(x)].square().mean())
    larger = torch.rand(3, 3, 16, 20, dtype=torch.float64)
    assert torch.equal(method.embed(larger), backbone(larger))
    masked, painted, mask = method.reconstruct(x, noise=noise)
    assert mask.sum(1).tolist() == [5.0] * 4 and torch.equal(masked, x.masked_fill(removed, 0.0))
    torch.testing.assert_close(painted, torch.where(removed, out, x))

    method = Inpainting(backbone, 8, corruption="noise", mask_size=2, sigma=0.3).double().eval()
    noise = torch.randn_like(x)
    out = method.decoder(method.backbone.forward_features(x + 0.3 * noise))
    torch.testing.assert_close(method(x, noise=noise), (out - x).square().mean())
    corrupted, painted, mask = method.reconstruct(x, noise=noise)
    torch.testing.assert_close((corrupted - x) / 0.3, noise)
    assert torch.equal(painted, out) and mask.shape == (4, 16) and mask.all()


class Maps(nn.Module):
    """images (N, 3, S, S) -> maps (N, 6, S / 4, S / 4), features (N, 6)."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 4, 4)

    def forward_features(self, x):
        return self.convolution(x).tanh()

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


@pytest.mark.parametrize("backbone", ["vit", "vit with class token"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mae_reconstruction_pastes_what_was_visible(backbone, norm_pix_loss):
    method, x, noise = mae(backbone, norm_pix_loss=norm_pix_loss).eval(), images(), torch.rand(5, 24)
    masked, painted, mask = method.reconstruct(x, noise=noise)
    true, hidden, filled = (patchify(t, 2) for t in (x, masked, painted))
    kept = noise.argsort(1)[:, :6]
    assert torch.equal(mask, torch.ones(5, 24).scatter(1, kept, 0.0))
    assert torch.equal(hidden[mask == 0], true[mask == 0]) and not hidden[mask > 0].any()
    assert torch.equal(filled[mask == 0], true[mask == 0])
    error = (filled - true)[mask > 0]
    if norm_pix_loss:  # the loss is of the error over the patch's own spread
        error = error / (true.var(2, keepdim=True) + 1e-6).sqrt()[mask > 0]
    torch.testing.assert_close(error.square().mean(), method(x, noise=noise), rtol=1e-4, atol=1e-6)


def test_simmim_reconstruction_removes_whole_units():
    method, x, noise = simmim().eval(), images(), torch.rand(5, 6)
    masked, painted, mask = method.reconstruct(x, noise=noise)
    units = mask.view(5, 2, 2, 3, 2)
    assert torch.equal(units.amin((2, 4)), units.amax((2, 4))) and mask.sum(1).tolist() == [16.0] * 5  # ceil(0.6 * 6) of 4
    true, filled = (patchify(t, 2, layout="cpq") for t in (x, painted))
    assert torch.equal(filled[mask == 0], true[mask == 0])
    assert torch.equal(patchify(masked, 2)[mask == 0], patchify(x, 2)[mask == 0]) and not patchify(masked, 2)[mask > 0].any()
    torch.testing.assert_close((filled - true)[mask > 0].abs().mean(), method(x, noise=noise))


MAKERS = {
    "mae": (mae, images),
    "simmim": (simmim, images),
    "inpainting": (lambda: Inpainting(Maps(), 8, mask_size=2), lambda: torch.rand(5, 3, 8, 8)),
    "noise": (lambda: Inpainting(Maps(), 8, mask_size=2, corruption="noise"), lambda: torch.rand(5, 3, 8, 8)),
    "bert": (lambda: bert(), lambda: words()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_all_parameters_and_the_state_returns(name):
    make, given = MAKERS[name]
    method, x = make(), given()
    torch.manual_seed(3)
    method(x).backward()
    for key, p in method.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0), key
    torch.manual_seed(9)
    other = make()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(method.state_dict())
    torch.manual_seed(4)
    first = method.eval()(x)
    torch.manual_seed(4)
    assert torch.equal(first, other.eval()(x))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "bert"])
def test_randomness_is_that_of_the_generator(name):
    make, given = MAKERS[name]
    method, x = make().eval(), given()
    first, again = (method(x, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    other = method(x, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(5)
    assert torch.equal(first, method(x))


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_compiles_without_a_break(name):
    make, given = MAKERS[name]
    method, x = make(), given()
    compiled = torch.compile(method, backend="aot_eager", fullgraph=True)
    noise = torch.rand(5, 24 if name == "mae" else 6)
    loss, want = compiled(x, noise=noise), method(x, noise=noise)
    torch.testing.assert_close(loss, want)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_autocast(name):
    make, given = MAKERS[name]
    method, x = make(), given()
    noise = torch.rand(5, 24 if name == "mae" else 6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(x, noise=noise)
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    torch.testing.assert_close(loss, method(x, noise=noise), rtol=0.03, atol=0.01)


# --- words ----------------------------------------------------------------------------------------------------------------


def bert(**how) -> BERT:
    torch.manual_seed(0)
    return BERT(50, **{"mask_id": 49, "special_ids": (2, 3), "width": 16, "heads": 2, "length": 12, "probability": 0.4} | how)


def words(rows: int = 6) -> torch.Tensor:
    """Texts between 2 and 3, half of them filled up with 0."""
    ids = torch.randint(4, 49, (rows, 10), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 2
    for row in range(rows):
        end = 9 if row % 2 else 5
        ids[row, end] = 3
        ids[row, end + 1 :] = 0
    return ids


def test_bert_is_the_cross_entropy_of_the_selected_places():
    """All places through the head, the others ignored; and each text alone, without padding."""
    method, ids = bert().double(), words()
    special = (ids == 0) | (ids == 2) | (ids == 3)
    hidden, labels = mask_tokens(ids, mask_id=49, vocab_size=50, probability=0.4, special=special, seed=7)
    assert (labels[special] == -100).all() and (labels != -100).any()
    logits = F.linear(method.head(method.encode(hidden, ids != 0)), method.tokens.weight, method.bias)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = method(ids, seed=7)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for a, b in zip(
        torch.autograd.grad(loss, method.parameters()), torch.autograd.grad(expected, method.parameters()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
    short = method.encode(ids[:1, :6])
    torch.testing.assert_close(method.encode(ids)[:1, :6], short, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(method.embed(ids)[:1], short.mean(1), rtol=1e-10, atol=1e-12)
    assert torch.equal(method.embed(ids, (ids != 0).long()), method.embed(ids))


def test_bert_without_anything_to_hide():
    method = bert()
    loss = method(torch.tensor([[2, 3, 0], [0, 0, 0]]))
    loss.backward()
    assert loss.item() == 0.0 and all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    assert method.embed(torch.zeros(2, 4, dtype=torch.int64)).isfinite().all()
