"""``fastssl.patch``: what is swapped, that it computes the same, and that all of it is put back."""

import importlib
import sys
from contextlib import nullcontext
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fastssl
from fastssl.compat import lightly as ours
from fastssl.compat import mae
from fastssl.compat.timm import ModelEmaV3
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")

FUNCTIONS = (
    "get_at_index",
    "mask_at_index",
    "mask_bool",
    "normalize_mean_var",
    "patchify",
    "random_token_mask",
    "repeat_token",
    "set_at_index",
    "unpatchify",
    "update_momentum",
)


@pytest.fixture(scope="module")
def theirs():
    library("lightly.loss")
    library("lightly.models.modules")
    library("lightly.utils.lars")
    return importlib.import_module("lightly")


def original(f):
    """The drop-in behind a function that gives refused calls back to the library."""
    return getattr(f, "_fastssl", f)


def bindings(name):
    """Every name that a loaded module of the library binds, and the methods of its classes there."""
    found = {}
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] == name and isinstance(module, ModuleType):
            for key, value in vars(module).items():
                found[path, key] = value
                if isinstance(value, type):
                    found |= {(path, key, method): f for method, f in vars(value).items() if callable(f)}
    return found


def assert_same_bindings(got, want):
    assert got.keys() == want.keys()
    assert [key for key, value in want.items() if got[key] is not value] == []


def test_lightly_is_swapped_wherever_it_is_bound_and_put_back(theirs):
    before = bindings("lightly")
    patch = fastssl.patch("lightly")
    for name in FUNCTIONS:
        assert original(getattr(theirs.models.utils, name)) is getattr(ours, name)
    for name in ("DCLLoss", "DCLWLoss", "NegativeCosineSimilarity"):
        assert getattr(theirs.loss, name) is getattr(fastssl.loss, name)
    assert theirs.loss.NTXentLoss is theirs.loss.ntx_ent_loss.NTXentLoss is fastssl.loss.NTXentLoss
    assert theirs.models.modules.memory_bank.MemoryBankModule is ours.MemoryBankModule
    assert theirs.models.modules.NNMemoryBankModule is ours.NNMemoryBankModule
    assert "MaskedVisionTransformerTIMM.preprocess" in patch.names
    left = {id(before[tuple(name.rpartition(".")[::2])]) for name in patch.names if name.startswith("lightly.")}
    names = {
        ("lightly.models.modules.nn_memory_bank", "NNMemoryBankModule"),
        ("lightly.loss.barlow_twins_loss", "BarlowTwinsLoss"),
        ("lightly.loss.swav_loss", "SwaVLoss"),
        ("lightly.loss.tico_loss", "TiCoLoss"),
        ("lightly.loss.vicreg_loss", "VICRegLoss"),
    }  # which their own methods call by their names
    assert names <= {tuple(name.rpartition(".")[::2]) for name in patch.names}
    kept = {key for key, value in bindings("lightly").items() if len(key) == 2 and id(value) in left}
    assert kept == names
    patch.undo()
    assert_same_bindings(bindings("lightly"), before)
    patch.undo()
    assert_same_bindings(bindings("lightly"), before)


def test_inner_patches_swap_nothing_and_put_nothing_back(theirs):
    before, utils = bindings("lightly"), theirs.models.utils
    with fastssl.patch("lightly") as outer:
        assert outer.names and "lightly" in repr(outer)
        with fastssl.patch("lightly") as inner:
            assert inner.names == ()
        assert original(utils.get_at_index) is ours.get_at_index
        assert theirs.models.modules.NNMemoryBankModule is ours.NNMemoryBankModule
        after = fastssl.patch("lightly")
    assert_same_bindings(bindings("lightly"), before)
    with fastssl.patch("lightly"):
        after.undo()
        assert original(utils.get_at_index) is ours.get_at_index
    with pytest.raises(KeyError), fastssl.patch("lightly"):
        raise KeyError
    assert_same_bindings(bindings("lightly"), before)


def test_modules_imported_meanwhile_are_put_back_too(theirs, monkeypatch):
    later = ModuleType("lightly.later")
    monkeypatch.setitem(sys.modules, "lightly.later", later)
    foreign = ModuleType("lightly_like")
    monkeypatch.setitem(sys.modules, "lightly_like", foreign)
    before = theirs.models.utils.patchify
    foreign.patchify = before
    with fastssl.patch("lightly"):
        later.named_otherwise = theirs.models.utils.patchify
        assert original(later.named_otherwise) is ours.patchify and foreign.patchify is before
    assert later.named_otherwise is before


def test_lightly_objects_and_subclasses_from_before_still_work(theirs):
    modules, loss = theirs.models.modules, theirs.loss
    bank, nt_xent = modules.NNMemoryBankModule((8, 4)), loss.NTXentLoss(memory_bank_size=(8, 4))

    class Own(modules.NNMemoryBankModule):
        pass

    z = torch.randn(2, 3, 4)
    with fastssl.patch("lightly"):
        assert bank(z[0], update=True).shape == Own((8, 4))(z[0]).shape == (3, 4)
        assert nt_xent(*z).isfinite() and loss.DirectCLRLoss(loss_dim=2)(*z).isfinite()
        assert type(modules.NNMemoryBankModule((8, 4))) is ours.NNMemoryBankModule


def test_a_class_that_calls_itself_by_its_name_lives_on(theirs):
    """lightly's own script for VICReg imports it from the module that defines it."""
    module = theirs.loss.vicreg_loss
    before = module.VICRegLoss
    Own = type("Own", (before,), {})
    z = torch.randn(2, 6, 4)
    wanted = before()(*z)
    with fastssl.patch("lightly"):
        assert module.VICRegLoss is theirs.loss.VICRegLoss is fastssl.loss.VICRegLoss
        for cls in (before, Own, module.VICRegLoss):
            assert_close(cls()(*z), wanted)
        assert not isinstance(before(), module.VICRegLoss)
        scope = {}
        exec("from lightly.loss.vicreg_loss import VICRegLoss", scope)
        assert scope["VICRegLoss"] is fastssl.loss.VICRegLoss
    assert module.VICRegLoss is before
    assert_close(Own()(*z), wanted)


def test_a_name_that_answers_with_the_drop_in_can_be_bound_to_something_else(theirs):
    """As tests do with ``mock.patch`` and ``monkeypatch``, which put back what they found in the module or were answered."""
    module = theirs.loss.vicreg_loss
    before = module.VICRegLoss
    with fastssl.patch("lightly"):
        with mock.patch.object(module, "VICRegLoss", int):
            assert module.VICRegLoss is vars(module)["VICRegLoss"] is int
        assert module.VICRegLoss is fastssl.loss.VICRegLoss and vars(module)["VICRegLoss"] is before
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delattr(module, "VICRegLoss")
            assert not hasattr(module, "VICRegLoss")
            with pytest.raises(AttributeError, match=r"module 'lightly\.loss\.vicreg_loss' has no attribute 'VICRegLoss'"):
                del module.VICRegLoss
        assert module.VICRegLoss is fastssl.loss.VICRegLoss and vars(module)["VICRegLoss"] is before
        module.VICRegLoss = int
    assert module.VICRegLoss is int  # what somebody else has bound stays
    module.VICRegLoss = before
    assert module.VICRegLoss is before


@pytest.mark.parametrize("bank", [0, (16, 8)])
def test_lightly_nt_xent_is_the_same_inside(theirs, bank):
    results = []
    for patched in (False, True):
        torch.manual_seed(3)
        z = torch.randn(2, 6, 8, requires_grad=True)
        with fastssl.patch("lightly") if patched else nullcontext():
            criterion = theirs.loss.NTXentLoss(temperature=0.2, memory_bank_size=bank)
        loss = criterion(*z)
        results.append((type(criterion), loss, *torch.autograd.grad(loss, z)))
    assert results[0][0] is not results[1][0]
    assert_close(results[1][1:], results[0][1:])


def lightly_mae_step(theirs):
    """One step of lightly's MAE: encoder on the kept tokens, decoder on all, error of the removed patches."""
    utils, modules = theirs.models.utils, theirs.models.modules
    timm = library("timm.models.vision_transformer")
    torch.manual_seed(1)
    vit = timm.VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=0)
    encoder = modules.MaskedVisionTransformerTIMM(vit)
    decoder = modules.MAEDecoderTIMM(16, 4, embed_dim=24, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    images = torch.randn(3, 3, 16, 16)
    size = (3, encoder.sequence_length)
    keep, removed = utils.random_token_mask(size, 0.75)
    tokens = utils.repeat_token(decoder.mask_token, size)
    tokens = utils.set_at_index(tokens, keep, decoder.embed(encoder.encode(images, idx_keep=keep)).type_as(tokens))
    pred = decoder.predict(utils.get_at_index(decoder.decode(tokens), removed))
    loss = nn.functional.mse_loss(pred, utils.get_at_index(utils.patchify(images, 4), removed - 1))
    masked = encoder.encode(images, idx_mask=removed).square().mean()
    bool_mask = torch.zeros(size, dtype=torch.bool).scatter_(1, removed, True)
    assert_close(encoder.encode(images, mask=bool_mask).square().mean(), masked)
    (loss + masked).backward()
    grids = utils.random_grid_token_mask(size, 0.5, grid_size=2)
    gradients = [p.grad for module in (encoder, decoder) for p in module.parameters() if p.grad is not None]
    return loss, masked, keep, removed, *grids, gradients


@pytest.mark.filterwarnings("ignore:.*MAEDecoderTIMM")
def test_lightly_mae_is_the_same_inside(theirs):
    want = lightly_mae_step(theirs)
    with fastssl.patch("lightly"):
        got = lightly_mae_step(theirs)
    assert len(got[-1]) > 20
    assert_close(got, want)


@pytest.mark.parametrize(
    ("options", "convolves"),
    [
        ({}, False),
        ({"reg_tokens": 2}, False),
        ({"reg_tokens": 1, "no_embed_class": True}, False),
        ({"class_token": False, "global_pool": "avg"}, False),
        ({"pos_drop_rate": 0.5}, True),
        ({"dynamic_img_size": True}, True),
    ],
)
def test_lightly_encoder_embeds_only_what_it_keeps(theirs, monkeypatch, options, convolves):
    """Any tokens in any order, the prefix among them or not, some of them twice."""
    timm, convolution = library("timm.models.vision_transformer"), nn.Conv2d.forward
    size = (12, 12) if options.get("dynamic_img_size") else (8, 16)
    vit = timm.VisionTransformer(img_size=size, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=0, **options)
    encoder = theirs.models.modules.MaskedVisionTransformerTIMM(vit, pos_embed_initialization="learn")
    vit.pos_embed.requires_grad_()
    images, ran = torch.randn(3, 3, *size), []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (ran.append(1), convolution(self, x))[1])
    keep = torch.rand(3, encoder.sequence_length).argsort(1)[:, :5].repeat(1, 2)
    results = []
    for patched in (False, True):
        ran.clear()
        torch.manual_seed(2)
        encoder.zero_grad()
        with fastssl.patch("lightly") if patched else nullcontext():
            tokens = encoder.preprocess(images, idx_keep=keep)
        tokens.square().sum().backward()
        results.append((tokens, [p.grad for p in vit.parameters() if p.grad is not None]))
    assert bool(ran) == convolves
    assert_close(*results, rtol=1e-5, atol=1e-5)


def test_timm_is_swapped_and_put_back():
    utils, before = library("timm.utils"), bindings("timm")
    with fastssl.patch("timm") as patch:
        assert utils.ModelEmaV3 is utils.model_ema.ModelEmaV3 is ModelEmaV3
        assert {"timm.utils.ModelEmaV3", "timm.utils.model_ema.ModelEmaV3"} <= set(patch.names)
    assert_same_bindings(bindings("timm"), before)


def test_transformers_is_swapped_and_put_back():
    holders = [library(f"transformers.models.{m}.modeling_{m}") for m in ("vit_mae", "clip", "siglip", "siglip2", "wav2vec2")]
    before = bindings("transformers")
    with fastssl.patch("transformers") as patch:
        assert len(patch.names) == 8
        for cls, _, method in (name.partition(".") for name in patch.names):
            holder = next(module for module in holders if hasattr(module, cls))
            assert original(getattr(getattr(holder, cls), method)).__module__.startswith("fastssl.compat.")
    assert_same_bindings(bindings("transformers"), before)


def test_transformers_with_a_method_for_the_loss(monkeypatch):
    """Versions that have one keep their forward."""
    vit_mae = library("transformers.models.vit_mae.modeling_vit_mae")
    model = vit_mae.ViTMAEForPreTraining

    def forward_loss(self, pixel_values, pred, mask, interpolate_pos_encoding=False): ...

    monkeypatch.setattr(model, "forward_loss", forward_loss, raising=False)
    forward = model.forward
    with fastssl.patch("transformers") as patch:
        assert "ViTMAEForPreTraining.forward_loss" in patch.names and model.forward is forward
        assert original(model.forward_loss).__module__ == "fastssl.compat.transformers"
    assert model.forward_loss is forward_loss


def test_patched_embeddings_compile_in_one_graph():
    """With the look at hooks and replaced methods that decides what is embedded."""
    vit_mae = library("transformers.models.vit_mae.modeling_vit_mae")
    embeddings = vit_mae.ViTMAEEmbeddings(vit_mae.ViTMAEConfig(image_size=16, patch_size=4, hidden_size=8))
    pixels, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    want = embeddings(pixels, noise)
    with fastssl.patch("transformers"):
        assert_close(torch.compile(embeddings, fullgraph=True, backend="eager")(pixels, noise), want)


class MaskedAutoencoderViT(nn.Module):
    def random_masking(self, x, mask_ratio): ...
    def patchify(self, imgs): ...
    def unpatchify(self, x): ...
    def forward_loss(self, imgs, pred, mask): ...
    def forward_encoder(self, x, mask_ratio): ...
    def forward_decoder(self, x, ids_restore): ...


class Derived(MaskedAutoencoderViT):
    def forward_loss(self, imgs, pred, mask): ...


METHODS = [name for name in vars(MaskedAutoencoderViT) if not name.startswith("__")]


def test_mae_takes_the_class_or_its_module():
    module = ModuleType("models_mae")
    module.MaskedAutoencoderViT = MaskedAutoencoderViT
    for target, cls in ((MaskedAutoencoderViT, MaskedAutoencoderViT), (module, MaskedAutoencoderViT), (Derived, Derived)):
        before = dict(vars(cls))
        with fastssl.patch("mae", target) as patch:
            assert all(original(vars(cls)[name]) is getattr(mae, name) for name in METHODS)
            assert sorted(patch.names) == sorted(f"{cls.__name__}.{name}" for name in METHODS)
            with fastssl.patch("mae", target) as inner:
                assert inner.names == ()
            assert original(cls.forward_loss) is mae.forward_loss
        assert {k: v for k, v in vars(cls).items() if callable(v)} == {k: v for k, v in before.items() if callable(v)}
