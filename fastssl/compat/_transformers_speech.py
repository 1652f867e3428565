"""``forward`` of wav2vec 2.0 of transformers (5.23), whose contrastive loss needs no rows of negatives.

    Wav2Vec2ForPreTraining.forward = wav2vec2_forward          fastssl.patch("transformers")

The library gathers the negatives of all frames (J, B, T, D), hidden or not, compares them with the positive entry by entry, and
takes cosines with all of them. Here the index of the hidden frames goes to ``sampled_info_nce``. Everything before the loss is the
library's own ``forward``, called without negatives.
"""

from torch import Tensor
from transformers.models.wav2vec2 import modeling_wav2vec2 as wav2vec2
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from fastssl.loss.sampled_info_nce import sampled_info_nce

_Model, _Output = wav2vec2.Wav2Vec2ForPreTraining, wav2vec2.Wav2Vec2ForPreTrainingOutput
_forward, _logits = _Model.forward, _Model.compute_contrastive_logits


@can_return_tuple
def wav2vec2_forward(
    self,
    input_values: Tensor | None,
    attention_mask: Tensor | None = None,
    mask_time_indices: Tensor | None = None,
    sampled_negative_indices: Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> _Output:  # type: ignore[valid-type]
    """input_values (B, S), mask_time_indices (B, T), sampled_negative_indices (B, T, J) -> the output of the library's ``forward``.

    The losses are float32 (float64 where the model is). A class with logits of its own, and a call without hidden frames, are left
    to the library.
    """
    given = (input_values, attention_mask, mask_time_indices)
    usual = self.compute_contrastive_logits is _logits
    if sampled_negative_indices is None or mask_time_indices is None or not mask_time_indices.any() or not usual:
        return _forward(self, *given, sampled_negative_indices, return_dict=True, **kwargs)
    found = _forward(self, *given, return_dict=True, **kwargs)
    mask = mask_time_indices.bool()
    keys, config = found.projected_quantized_states.flatten(0, 1), self.config
    contrastive = sampled_info_nce(
        found.projected_states[mask].to(keys.dtype),
        keys,
        mask.flatten().nonzero()[:, 0],
        sampled_negative_indices[mask].long(),
        temperature=config.contrastive_logits_temperature,
        reduction="sum",
    )
    codes = config.num_codevectors_per_group * config.num_codevector_groups
    diversity = (codes - found.codevector_perplexity) / codes * mask.sum()
    return _Output(
        loss=contrastive + config.diversity_loss_weight * diversity,
        projected_states=found.projected_states,
        projected_quantized_states=found.projected_quantized_states,
        codevector_perplexity=found.codevector_perplexity,
        hidden_states=found.hidden_states,
        attentions=found.attentions,
        contrastive_loss=contrastive,
        diversity_loss=diversity,
    )
