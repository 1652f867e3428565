"""``fastssl.patch`` on models of image-text pairs (CLIP, SigLIP, SigLIP 2 of transformers), on MoCo v3 and on SupContrast."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import fastssl
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = SMALL | {"vocab_size": 20, "max_position_embeddings": 6, "projection_dim": 8, "pad_token_id": 0, "eos_token_id": 19}
VISION = SMALL | {"image_size": 8, "patch_size": 4}
MODELS = {
    "clip": ("CLIP", VISION | {"projection_dim": 8}),
    "siglip": ("Siglip", VISION),
    "siglip2": ("Siglip2", SMALL | {"patch_size": 2, "num_patches": 4}),
}
LOGITS = ("logits_per_image", "logits_per_text")


def pairs(name, rows=5):
    """A model in float64 and its inputs."""
    prefix, vision = MODELS[name]
    module = library(f"transformers.models.{name}.modeling_{name}")
    config = getattr(library("transformers"), f"{prefix}Config")(text_config=TEXT, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    model = getattr(module, f"{prefix}Model")(config).double().eval()
    inputs = {"input_ids": torch.randint(1, 18, (rows, 6))}
    inputs["input_ids"][:, -1] = 19
    if name == "siglip2":
        inputs |= {"pixel_values": torch.randn(rows, 4, 12).double(), "pixel_attention_mask": torch.ones(rows, 4).long()}
        inputs |= {"spatial_shapes": torch.tensor([[2, 2]] * rows)}
    else:
        inputs |= {"pixel_values": torch.randn(rows, 3, 8, 8).double()}
    return model, inputs


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradients_and_logits_of_pairs(name):
    """Also the gradient through logits that are read after the loss."""
    model, inputs = pairs(name)
    results = []
    for patched in (False, True):
        with fastssl.patch("transformers") if patched else nullcontext():
            output = model(**inputs, return_loss=True)
            plain = model(**inputs)
            tupled = model(**inputs, return_loss=True, return_dict=False)
        grads = gradients(model, output.loss + 0.1 * output.logits_per_image.square().mean())
        read = [output[k] for k in (0, 1, "logits_per_text", "text_embeds", "loss")] + list(output[1:4])
        assert plain.loss is None and isinstance(output, library(type(plain).__module__).ModelOutput)
        nested = [list(part) if isinstance(part, tuple) else part for part in tupled]
        results.append((grads, read, nested, [plain[k] for k in LOGITS], list(output.keys())))
    (*want, keys), (*got, ours) = results
    assert keys == ours
    assert_close(got, want)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_pairs_are_computed_when_read(name, monkeypatch):
    model, inputs = pairs(name)
    drop_ins = library("fastssl.compat.transformers")
    ran, matmul = [], torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b: (ran.append((len(a), b.shape[-1])), matmul(a, b))[1])
    with fastssl.patch("transformers"):
        output = model(**inputs, return_loss=True)
        assert type(output).__module__ == drop_ins.clip_forward.__module__
        output["loss"], output.loss, output[0], output.text_embeds, output.get("image_embeds"), len(output), "loss" in output
        gradients(model, output["loss"])
        assert (5, 5) not in ran  # neither the forward nor the backward made the matrix
        kept = model(**inputs, return_loss=True)
        with torch.no_grad():
            logits = kept.logits_per_text
        assert (5, 5) in ran and logits.requires_grad  # as it would be, had it been computed in the forward
        for made in (copy.copy, lambda o: o.__class__(**o), lambda o: o.__class__(dict(o))):
            again = made(model(**inputs, return_loss=True))
            assert_close([again[k] for k in LOGITS], [kept[k] for k in LOGITS])
        with torch.no_grad():
            again = pickle.loads(pickle.dumps(model(**inputs, return_loss=True)))
        assert_close(again.get("logits_per_image"), kept.logits_per_image.detach())
        changed = model(**inputs, return_loss=True)
        changed.logits_per_text = logits + 1
        assert_close([changed[k] for k in LOGITS], [kept.logits_per_image, logits + 1])


def test_pairs_that_the_loss_refuses_get_the_librarys():
    """As many images as texts are missing: its own error; NaN: its own loss."""
    for name in MODELS:
        model, inputs = pairs(name)
        model.logit_scale.data.fill_(float("nan"))
        with fastssl.patch("transformers"):
            assert model(**inputs, return_loss=True).loss.isnan()
    model, inputs = pairs("clip")
    with fastssl.patch("transformers"), pytest.raises((IndexError, RuntimeError, ValueError), match=r"arget|size"):
        model(**inputs | {"input_ids": inputs["input_ids"][:3]}, return_loss=True)


def test_patched_clip_compiles_in_one_graph():
    model, inputs = pairs("clip")
    want = model(**inputs, return_loss=True)
    with fastssl.patch("transformers"):
        got = torch.compile(model, fullgraph=True, backend="eager")(**inputs, return_loss=True)
    assert_close([got.loss, got.logits_per_image], [want.loss, want.logits_per_image])


# --- classes that the user brings -----------------------------------------------------------------------------------------------


class MoCo(nn.Module):
    """The methods of MoCo v3's class that are swapped, by the formulas of its paper (algorithm 1)."""

    def __init__(self):
        super().__init__()
        self.T = 0.2
        self.base_encoder, self.momentum_encoder = nn.Linear(6, 6), nn.Linear(6, 6)

    def contrastive_loss(self, q, k):
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / self.T
        return F.cross_entropy(logits, torch.arange(len(q))) * 2 * self.T

    @torch.no_grad()
    def _update_momentum_encoder(self, m):
        for base, momentum in zip(self.base_encoder.parameters(), self.momentum_encoder.parameters(), strict=True):
            momentum.data = momentum.data * m + base.data * (1 - m)

    def forward(self, x1, x2, m):
        q1, q2 = self.base_encoder(x1), self.base_encoder(x2)
        with torch.no_grad():
            self._update_momentum_encoder(m)
            k1, k2 = self.momentum_encoder(x1), self.momentum_encoder(x2)
        return self.contrastive_loss(q1, k2) + self.contrastive_loss(q2, k1)


def test_moco_v3():
    results = []
    for patched in (False, True):
        torch.manual_seed(0)
        model, views = MoCo().double(), torch.randn(2, 7, 6, dtype=torch.float64)
        with fastssl.patch("mocov3", MoCo) if patched else nullcontext() as patch:
            assert not patched or patch.names == ("MoCo.contrastive_loss", "MoCo._update_momentum_encoder")
            loss = model(*views, 0.9)
            loss.backward()
            refused = model.contrastive_loss(torch.eye(3, dtype=torch.float64), torch.eye(5, 3, dtype=torch.float64))
        results.append((loss, refused, [p.grad for p in model.base_encoder.parameters()], model.state_dict()))
    assert_close(*results)


class SupConLoss(nn.Module):
    """SupContrast's class as far as it is read, with a loss of its own in the place of the published one."""

    def __init__(self, temperature=0.07, contrast_mode="all", base_temperature=0.07):
        super().__init__()
        self.temperature, self.contrast_mode, self.base_temperature = temperature, contrast_mode, base_temperature

    def forward(self, features, labels=None, mask=None):
        return "theirs"


def test_supcontrast():
    ours = library("fastssl.compat.supcon")
    features, labels = F.normalize(torch.randn(6, 2, 5), dim=2), torch.arange(6) % 2
    criterion = SupConLoss(0.2, "one", 0.1)
    with fastssl.patch("supcon", SupConLoss) as patch:
        assert patch.names == ("SupConLoss.forward",)
        assert_close(criterion(features, labels=labels), ours.SupConLoss(0.2, "one", 0.1)(features, labels))
        assert criterion(features[0], labels) == "theirs"  # ours refuses features of two dimensions
    assert criterion(features, labels) == "theirs"
