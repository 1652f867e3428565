"""``forward`` of CLIP, SigLIP and SigLIP 2 of transformers (5.23), whose loss needs no N x N logits.

    CLIPModel.forward = clip_forward          fastssl.patch("transformers")
    SiglipModel.forward = siglip_forward
    Siglip2Model.forward = siglip2_forward

The library's output holds ``logits_per_image`` and ``logits_per_text``, (N, N) each. A step of training reads the loss alone, so
with ``return_loss=True`` the output computes them when they are first read: the same tensors, attached to the same graph, by
attribute, key or position. Whatever goes through all entries (``values()``, ``to_tuple()``, ``return_dict=False``, copies, pickle,
accelerate's mixed precision) reads them. Without ``return_loss``, and under ``torch.compile``, they are there at once.

The library's ``image_text_contrastive_loss`` and ``contrastive_loss`` take the matrix, so no drop-in for them could save it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.clip import modeling_clip as clip
from transformers.models.siglip import modeling_siglip as siglip
from transformers.models.siglip2 import modeling_siglip2 as siglip2
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from fastssl.loss.clip import clip_loss, siglip_loss

from ._late import late_output, with_late

LOGITS = ("logits_per_image", "logits_per_text")
CLIPOutput = late_output(clip.CLIPOutput, LOGITS, __name__)
SiglipOutput = late_output(siglip.SiglipOutput, LOGITS, __name__)
Siglip2Output = late_output(siglip2.Siglip2Output, LOGITS, __name__)


def _output(late: type, plain: type, loss_of: Callable, return_loss, image: Tensor, text: Tensor, scale: Tensor, bias, **entries):
    """The library's output of embeddings of unit length (N, D); ``loss_of(logits)`` is its loss, where ours refuses a call."""
    image_there = image.to(text.device)

    def logits() -> tuple[Tensor, Tensor]:
        per_text = torch.matmul(text, image_there.t()) * scale
        per_text = per_text if bias is None else per_text + bias
        return per_text.t(), per_text

    loss = None
    if return_loss:
        try:
            loss = clip_loss(text, image_there, scale) if bias is None else siglip_loss(text, image_there, scale, bias)
        except (TypeError, ValueError, NotImplementedError):
            loss = loss_of(logits()[1])
    entries |= {"text_embeds": text, "image_embeds": image}
    if loss is None or torch.compiler.is_compiling():
        return plain(loss, *logits(), **entries)
    return with_late(late, logits, text, loss=loss, **entries)


def _sigmoid_loss(logits: Tensor) -> Tensor:
    """SigLIP's loss of the matrix, as the library computes it."""
    sign = 2.0 * torch.eye(len(logits), device=logits.device) - torch.ones_like(logits)
    return -F.logsigmoid(sign * logits).sum(-1).mean()


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(p=2, dim=-1, keepdim=True)


@can_return_tuple
def clip_forward(  # type: ignore[misc]
    self,
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    return_loss: bool | None = None,
    interpolate_pos_encoding: bool = False,
    **kwargs: Unpack[TransformersKwargs],
) -> clip.CLIPOutput:
    """input_ids (N, T), pixel_values (N, C, H, W) -> the output of ``CLIPModel``, with ``return_loss`` the loss (), float32
    (float64 where the embeddings are).

    With ``return_loss`` its (N, N) logits are computed when they are first read.
    """
    images = self.get_image_features(pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
    texts = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
    image, text = (x / x.square().sum(-1, keepdim=True).pow(0.5) for x in (images.pooler_output, texts.pooler_output))
    scale, parts = self.logit_scale.exp().to(text.device), {"text_model_output": texts, "vision_model_output": images}
    loss = clip.image_text_contrastive_loss
    return _output(CLIPOutput, clip.CLIPOutput, loss, return_loss, image, text, scale, None, **parts)


@can_return_tuple
def siglip_forward(  # type: ignore[misc]
    self,
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    return_loss: bool | None = None,
    interpolate_pos_encoding: bool = False,
    **kwargs: Unpack[TransformersKwargs],
) -> siglip.SiglipOutput:
    """input_ids (N, T), pixel_values (N, C, H, W) -> the output of ``SiglipModel``, with ``return_loss`` the loss (), float32
    (float64 where the embeddings are).

    With ``return_loss`` its (N, N) logits are computed when they are first read.
    """
    images = self.vision_model(pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
    texts = self.text_model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
    return _sigmoid_output(self, SiglipOutput, siglip.SiglipOutput, return_loss, images, texts)


@can_return_tuple
def siglip2_forward(  # type: ignore[misc]
    self,
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    pixel_attention_mask: Tensor | None = None,
    spatial_shapes: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    return_loss: bool | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> siglip2.Siglip2Output:
    """input_ids (N, T), pixel_values (N, L, C p p) -> the output of ``Siglip2Model``, with ``return_loss`` the loss (), float32
    (float64 where the embeddings are).

    With ``return_loss`` its (N, N) logits are computed when they are first read.
    """
    images = self.vision_model(
        pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes, **kwargs
    )
    texts = self.text_model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
    return _sigmoid_output(self, Siglip2Output, siglip2.Siglip2Output, return_loss, images, texts)


def _sigmoid_output(self, late: type, plain: type, return_loss, images, texts):
    image, text = _unit(images.pooler_output), _unit(texts.pooler_output)
    scale, bias = self.logit_scale.to(text.device).exp(), self.logit_bias.to(text.device)
    parts = {"text_model_output": texts, "vision_model_output": images}
    return _output(late, plain, _sigmoid_loss, return_loss, image, text, scale, bias, **parts)
