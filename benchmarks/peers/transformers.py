"""transformers: the embeddings, decoder and loss of its ViTMAE, without the blocks between them; the loss of its wav2vec 2.0.

The modules are built on the meta device and called with the tensors of the state as their parameters. The decoder gets no blocks,
and identities for its two linear layers; the input of its norm is the result. The loss is a part of
``ViTMAEForPreTraining.forward``, which is called on a stand-in for the model.
"""

from functools import lru_cache, partial
from types import SimpleNamespace

import torch
from torch import nn
from torch.func import functional_call

from fastssl.testing.masked_updates import patch_side, sequence

from . import Peer, after_torchvision, masked


class _Seen(nn.Module):
    """An identity that keeps its input."""

    def forward(self, x):
        self.x = x
        return x

    def taken(self):
        found, self.x = self.x, None
        return found


@lru_cache
def _embeddings(side: int, patch: int, width: int, mask_ratio: float):
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEConfig, ViTMAEEmbeddings

    with torch.device("meta"):
        return ViTMAEEmbeddings(ViTMAEConfig(image_size=side, patch_size=patch, hidden_size=width, mask_ratio=mask_ratio))


@lru_cache
def _decoder(length: int, width: int):
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEConfig, ViTMAEDecoder

    with torch.device("meta"):
        decoder = ViTMAEDecoder(ViTMAEConfig(decoder_hidden_size=width, decoder_num_hidden_layers=0), length)
    decoder.decoder_embed = decoder.decoder_pred = nn.Identity()
    decoder.decoder_norm = _Seen()
    return decoder


def _random_masking(given):
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    stand_in = SimpleNamespace(config=SimpleNamespace(mask_ratio=given["mask_ratio"]))
    tokens, mask, ids_restore = ViTMAEEmbeddings.random_masking(stand_in, given["x"], given["noise"])
    return {"kept": tokens, "mask": mask, "ids_restore": ids_restore}


def _embed(given):
    weight = given["weight"]
    module = _embeddings(given["images"].shape[2], weight.shape[2], weight.shape[0], given["mask_ratio"])
    tensors = {
        "cls_token": given["cls"],
        "position_embeddings": given["pos"],
        "patch_embeddings.projection.weight": weight,
        "patch_embeddings.projection.bias": given["bias"],
    }
    embedded, mask, ids_restore = functional_call(module, tensors, (given["images"], given["noise"]))
    return {"embedded": embedded, "mask": mask, "ids_restore": ids_restore}


def _restore(given):
    decoder = _decoder(given["ids_restore"].shape[1], given["x"].shape[2])
    tensors = {"mask_token": given["mask_token"], "decoder_pos_embed": given["decoder_pos"]}
    functional_call(decoder, tensors, (given["x"], given["ids_restore"]))
    return {"restored": decoder.decoder_norm.taken()}


def _loss(given):
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTraining

    config = {"norm_pix_loss": given["norm_pix_loss"], "patch_size": patch_side(given), "num_channels": given["images"].shape[1]}
    encoded = {"last_hidden_state": None, "ids_restore": None, "hidden_states": None, "attentions": None, "mask": given["mask"]}
    model = SimpleNamespace(
        config=SimpleNamespace(return_dict=True, **config),
        vit=lambda *_, **__: SimpleNamespace(**encoded),
        decoder=lambda *_, **__: SimpleNamespace(logits=given["pred"]),
    )
    model.patchify = partial(ViTMAEForPreTraining.patchify, model)
    return {"loss": ViTMAEForPreTraining.forward(model, given["images"]).loss}


class _As(nn.Identity):
    """An identity whose ``weight`` says of which dtype its layer would be."""

    weight = torch.empty(0)


def _sampled(given):
    """Frames, targets and negatives of one sound, all of them hidden."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForPreTraining

    query, keys = given["query"][None], given["keys"][None]
    nothing = {"hidden_states": None, "attentions": None}
    numbers = {"contrastive_logits_temperature": 0.1, "num_codevectors_per_group": 1, "num_codevector_groups": 1}
    model = SimpleNamespace(
        config=SimpleNamespace(return_dict=True, diversity_loss_weight=0.0, **numbers),
        wav2vec2=lambda *_, **__: SimpleNamespace(last_hidden_state=query, extract_features=keys, **nothing),
        project_hid=_As(),
        project_q=_As(),
        dropout_features=_As(),
        quantizer=lambda features, **_: (features, torch.ones((), device=features.device)),
        compute_contrastive_logits=Wav2Vec2ForPreTraining.compute_contrastive_logits,
    )
    mask = torch.ones(query.shape[:2], dtype=torch.bool, device=query.device)
    found = Wav2Vec2ForPreTraining.forward(
        model, None, mask_time_indices=mask, sampled_negative_indices=given["negative_index"][None]
    )
    return {"loss": found.contrastive_loss}


FORMS = {
    "random_masking": _random_masking,
    "restore_tokens": _restore,
    "patch_loss": _loss,
    "patch_loss_norm": _loss,
    "sampled_info_nce": _sampled,
    "mae_bundle": sequence(_embed, _restore, _loss),
}
PEER = Peer(
    "transformers",
    masked(FORMS, after_torchvision),
    distribution="transformers",
    module="transformers",
    differs={
        "mask_ids": "makes the mask in the call that takes the tokens: random_masking",
        "embed_visible": "makes the mask in the same call: mae_bundle",
    },
)
