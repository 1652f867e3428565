"""Methods for classes of transformers (5.23): ViTMAE (``facebook/vit-mae-*``), CLIP, SigLIP, SigLIP 2 and wav2vec 2.0.

They are to be set one by one, or all at once with ``fastssl.patch("transformers")``.

    ViTMAEEmbeddings.random_masking = random_masking
    ViTMAEEmbeddings.forward = embeddings_forward
    ViTMAEDecoder.forward = decoder_forward
    ViTMAEForPreTraining.forward = forward                      or .forward_loss = forward_loss, where the class has that method
    CLIPModel.forward = clip_forward
    SiglipModel.forward = siglip_forward
    Siglip2Model.forward = siglip2_forward
    Wav2Vec2ForPreTraining.forward = wav2vec2_forward

In 5.23 ViTMAE's loss stands inside ``ViTMAEForPreTraining.forward``, after all else, and no method that it calls sees both
pixels and predictions. So the method is replaced: encoder, decoder, outputs, hidden states and attentions are the library's.
A given ``noise`` gives the same ids bit for bit; without, one ``torch.rand(N, L)`` is drawn, so a seed gives the same mask.
"""

from typing import cast

from torch import Tensor
from transformers.models.vit_mae import modeling_vit_mae as theirs
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from fastssl import masking
from fastssl.ops.mask_ids import mask_ids
from fastssl.ops.restore_tokens import restore_tokens

from ._transformers_pairs import clip_forward, siglip2_forward, siglip_forward
from ._transformers_speech import wav2vec2_forward
from .mae import embed_kept, patch_loss, plain_projection, prepend, unwatched, uses

__all__ = [
    "clip_forward",
    "decoder_forward",
    "embeddings_forward",
    "forward",
    "forward_loss",
    "random_masking",
    "siglip2_forward",
    "siglip_forward",
    "wav2vec2_forward",
]


def random_masking(self, sequence: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """sequence (N, L, D), noise (N, L) -> kept tokens (N, K, D), mask (N, L) float32, 1 = removed, ids_restore (N, L) int64.

    K = int(L (1 - config.mask_ratio)). TypeError, ValueError: as ``fastssl.functional.random_masking``.
    """
    return masking.random_masking(sequence, self.config.mask_ratio, noise=_there(noise, sequence))


def embeddings_forward(
    self, pixel_values: Tensor, noise: Tensor | None = None, interpolate_pos_encoding: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """pixel_values (N, C, H, W), noise (N, L) -> class token and kept patches (N, 1 + K, E), mask (N, L), ids_restore (N, L).

    Only the visible patches are embedded, where nothing could see the difference: ``random_masking`` is the one of this file,
    ``patch_embeddings`` the library's class without hooks, its convolution plain. Elsewhere both are called as in the library.

    TypeError, ValueError: as ``mask_ids`` and ``embed_visible``, and images of another size without ``interpolate_pos_encoding``.
    """
    height, width = pixel_values.shape[2:]
    if not interpolate_pos_encoding and (height, width) != tuple(self.image_size):
        raise ValueError(
            f"ViTMAEEmbeddings: pixel_values must have the sides {tuple(self.image_size)} of the configuration, or "
            f"interpolate_pos_encoding=True, got {(height, width)}"
        )
    patch, projection = self.patch_embeddings, self.patch_embeddings.projection
    rows, columns = height // patch.patch_size[0], width // patch.patch_size[1]
    positions = self.position_embeddings
    if interpolate_pos_encoding:
        positions = self.interpolate_pos_encoding(_shape_only(positions, rows * columns), height, width)
    if not (
        uses(self, "random_masking", random_masking)
        and type(patch) is theirs.ViTMAEPatchEmbeddings
        and unwatched(patch)
        and plain_projection(projection)
    ):
        tokens, mask, ids_restore = self.random_masking(patch(pixel_values) + positions[:, 1:], noise)
        return prepend(self.cls_token + positions[:, :1], tokens), mask, ids_restore
    ids = mask_ids(
        (len(pixel_values), rows * columns), self.config.mask_ratio, noise=_there(noise, pixel_values), device=pixel_values.device
    )
    pixels = pixel_values[:, :, : rows * patch.patch_size[0], : columns * patch.patch_size[1]]  # a convolution leaves out the rest
    return embed_kept(pixels, projection, ids.ids_keep, self.cls_token, positions), ids.mask, ids.ids_restore


def decoder_forward(
    self, hidden_states: Tensor, ids_restore: Tensor, interpolate_pos_encoding: bool = False
) -> theirs.ViTMAEDecoderOutput:
    """hidden_states (N, 1 + K, E), ids_restore (N, L) int64 -> logits (N, L, C p p), pixels of all patches.

    TypeError, ValueError: as ``restore_tokens``.
    """
    hidden_states = self.decoder_embed(hidden_states)
    positions = self.decoder_pos_embed
    if interpolate_pos_encoding:
        positions = self.interpolate_pos_encoding(_shape_only(positions, 1 + ids_restore.shape[1]))
    ids_restore = ids_restore.to(hidden_states.device)
    hidden_states = restore_tokens(hidden_states, ids_restore, self.mask_token, pos_embed=positions)
    for layer in self.decoder_layers:
        hidden_states = layer(hidden_states)
    return theirs.ViTMAEDecoderOutput(logits=self.decoder_pred(self.decoder_norm(hidden_states))[:, 1:])


def forward_loss(self, pixel_values: Tensor, pred: Tensor, mask: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
    """pixel_values (N, C, H, W), pred (N, L, C p p), mask (N, L), 1 = removed -> mean over the removed patches.

    float32 (float64 where ``pred`` is); 0 where nothing is removed (the library gives NaN). The images may have any shape that
    ``pred`` fits.

    TypeError, ValueError, NotImplementedError: as ``masked_patch_loss``.
    """
    return patch_loss(pixel_values, pred, mask, self.config.patch_size, self.config.norm_pix_loss)


@can_return_tuple
def forward(
    self,
    pixel_values: Tensor | None = None,
    noise: Tensor | None = None,
    interpolate_pos_encoding: bool | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> theirs.ViTMAEForPreTrainingOutput:
    """pixel_values (N, C, H, W), noise (N, L) -> loss (), logits (N, L, C p p), mask and ids_restore (N, L), as the library
    returns them.

    TypeError, ValueError, NotImplementedError: as the encoder, the decoder and ``masked_patch_loss``.
    """
    encoded = self.vit(
        pixel_values, noise=noise, interpolate_pos_encoding=interpolate_pos_encoding, attention_mask=attention_mask, **kwargs
    )
    logits = self.decoder(encoded.last_hidden_state, encoded.ids_restore, interpolate_pos_encoding=interpolate_pos_encoding).logits
    return theirs.ViTMAEForPreTrainingOutput(
        loss=forward_loss(self, cast("Tensor", pixel_values), logits, encoded.mask),  # the encoder refuses None
        logits=logits,
        mask=encoded.mask,
        ids_restore=encoded.ids_restore,
        hidden_states=encoded.hidden_states,
        attentions=encoded.attentions,
    )


def _there(noise: Tensor | None, like: Tensor) -> Tensor | None:
    return noise if noise is None else noise.to(like.device)


def _shape_only(positions: Tensor, tokens: int) -> Tensor:
    """(1, tokens, D) without memory of its own: interpolation of positions looks at the shape of the tokens."""
    return positions.new_empty(1).expand(1, tokens, positions.shape[2])
