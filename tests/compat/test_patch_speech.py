"""``fastssl.patch`` on wav2vec 2.0 of transformers: loss, gradients and every entry of the output."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

import fastssl
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 5}
CONVOLUTIONS = {"conv_dim": (6, 6), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
PLACES = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
CODES = {"codevector_dim": 6, "proj_codevector_dim": 7, "num_codevectors_per_group": 3, "num_negatives": 5}


def model_and_inputs():
    """In float64; few codes, so that negatives equal their positive."""
    module = library("transformers.models.wav2vec2.modeling_wav2vec2")
    torch.manual_seed(0)
    config = library("transformers").Wav2Vec2Config(**SMALL, **CONVOLUTIONS, **PLACES, **CODES, apply_spec_augment=True)
    model = module.Wav2Vec2ForPreTraining(config).double().train()
    waveforms = torch.randn(3, 400, dtype=torch.float64)
    frames = int(model._get_feat_extract_output_lengths(400))
    mask = torch.rand(3, frames) < 0.4
    negatives = torch.randint(frames, (3, frames, 5)) + frames * torch.arange(3)[:, None, None]
    return model, {"input_values": waveforms, "mask_time_indices": mask, "sampled_negative_indices": negatives}


def outputs(model, inputs, patched, **how):
    with fastssl.patch("transformers") if patched else nullcontext():
        torch.manual_seed(1)
        return model(**inputs, **how)


def test_loss_gradients_and_entries():
    model, inputs = model_and_inputs()
    found = []
    for patched in (False, True):
        output = outputs(model, inputs, patched)
        grads = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        tupled = outputs(model, inputs, patched, return_dict=False)
        keys = list(output.keys())
        found.append((keys, [output[key].double() for key in keys], [t.double() for t in tupled], grads))
    (names, *want), (ours, *got) = found
    assert names == ours and "contrastive_loss" in names and "diversity_loss" in names
    assert_close(got, want, rtol=1e-5, atol=1e-6)  # the library's cosines and cross-entropy are float32


def test_calls_without_negatives_or_hidden_frames_are_the_library_s(monkeypatch):
    model, inputs = model_and_inputs()
    for change in ({"sampled_negative_indices": None}, {"mask_time_indices": torch.zeros_like(inputs["mask_time_indices"])}):
        want, got = (outputs(model, inputs | change, patched) for patched in (False, True))
        assert list(want.keys()) == list(got.keys())
        assert all(torch.equal(got[key], want[key]) or want[key].isnan().all() for key in want)
    monkeypatch.setattr(type(model), "compute_contrastive_logits", staticmethod(lambda *given: torch.zeros(6, *given[2].shape[:2])))
    want, got = (outputs(model, inputs, patched) for patched in (False, True))
    assert torch.equal(got.loss, want.loss)
