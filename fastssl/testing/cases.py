"""The table of cases: for each op or loss its inputs, the call, the same in eager PyTorch, its FLOPs and its bytes.

A call takes the differentiable inputs by name and returns one tensor. An eager form is what a careful user would write. In float64
its result is the truth; in the dtype of a test its error is what ours is compared with.

``inputs.py`` makes the inputs; ``similarities.py``, ``contrastive.py``, ``crops.py``, ``latents.py`` and ``masking.py`` hold calls
and eager forms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional

from . import contrastive, crops, distillation, inputs, latents, masking, redundancy, sampled, similarities, sketched, words
from .inputs import in_seven_bits


@dataclass(frozen=True)
class OpCase:
    """A case of the table.

    ``inputs(shape, dtype, device, seed)`` makes the differentiable tensors, which are the keywords of ``ours`` and ``eager``.
    ``flops(shape)`` is the least number of FLOPs of forward and backward. ``bytes(shape, itemsize)`` counts every input read once
    and every gradient written once. ``logits`` is their largest size, if the call has any: a loss is no better than float32 holds
    them.
    """

    name: str
    inputs: Callable[..., dict[str, Tensor]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    flops: Callable[[tuple], float]
    bytes: Callable[[tuple, int], float]
    shapes: tuple[tuple, ...] = field(default=())
    logits: float = 0.0

    def shape(self, b: int, d: int) -> tuple[int, ...]:
        """A shape of this case with about b rows of width d: (b, b + 2, d) or (b, d)."""
        return (b, b + 2, d) if len(self.shapes[0]) == 3 else (b, d)


def _pair_flops(shape) -> float:
    """FLOPs of forward and backward over one triangle of the symmetric matrix: 2U, U = 2 (2B)^2 D."""
    b, d = shape
    return 2 * 2 * (2 * b) ** 2 * d


def _pair_bytes(shape, itemsize) -> float:
    return 2 * 2 * shape[0] * shape[1] * itemsize


def _groups(x: Tensor) -> Tensor:
    """Groups in which four of five rows have a partner."""
    return torch.arange(len(x), device=x.device) * 3 // 5


def _clip_grouped(call):
    return lambda image, text, logit_scale: call(image, text, logit_scale, ids=_groups(image), label_smoothing=0.1)


def _siglip_grouped(call, **balanced):
    def run(image, text, logit_scale, logit_bias):
        ids = _groups(image)
        return call(image, text, logit_scale, logit_bias, image_id=ids, text_id=ids.flip(0), **balanced)

    return run


def _moco(call, keys=70):
    """The call with a queue: a constant that is made from arithmetic which a compiled graph can trace."""

    def run(query, key):
        angles = torch.arange(query.shape[1] * keys, device=query.device, dtype=torch.float64).reshape(query.shape[1], keys) ** 2
        return call(query, key, in_seven_bits(F.normalize(angles.sin(), dim=0)).to(query.dtype))

    return run


def _sup_con(call):
    return lambda features: call(features, _groups(features))


def _sup_con_masked(call):
    def run(features):
        rows = torch.arange(len(features), device=features.device)
        return call(features, mask=((rows[:, None] + rows) % 3 == 0).float(), contrast_mode="one")

    return run


_SHAPES = ((2, 1), (8, 16), (65, 20), (160, 130))
_SIDES = ((1, 1, 1), (5, 3, 2), (64, 64, 32), (130, 257, 33), (300, 100, 130))


def _loss_case(name, inputs, ours, eager, sweeps=4.0, first=(), columns=lambda s: s[0], logits=10.0) -> OpCase:
    """``sweeps``: the least FLOPs of forward and backward, in units of 2 N M D."""
    return OpCase(
        name,
        inputs,
        ours,
        eager,
        flops=lambda s: sweeps * 2 * s[0] * columns(s) * s[1],
        bytes=lambda s, itemsize: 4 * s[0] * s[1] * itemsize,
        shapes=(*first, *_SHAPES),
        logits=logits,
    )


def _pair_case(name, ours, eager, first=()) -> OpCase:
    return OpCase(name, inputs.two_views, ours, eager, _pair_flops, _pair_bytes, (*first, *_SHAPES), logits=10.0)


def _cosine_case(name, ours, eager) -> OpCase:
    """A loss of the pairs only: three dot products a row forward, one and a projection for each side backward."""
    return OpCase(
        name, inputs.prediction_inputs, ours, eager, lambda s: 14 * s[0] * s[1], _pair_bytes, ((1, 3), *_SHAPES), logits=1.0
    )


def _sides_case(name, inputs, ours, eager, sweeps, shapes=_SIDES) -> OpCase:
    return OpCase(
        name,
        inputs,
        ours,
        eager,
        flops=lambda s: sweeps * 2 * s[0] * s[1] * s[2],
        bytes=lambda s, itemsize: 2 * (s[0] + s[1]) * s[2] * itemsize,
        shapes=shapes,
    )


def _lse_case(name, inputs, wrap, sweeps) -> OpCase:
    shapes = (*_SIDES[:3], (70, 70, 24), *_SIDES[3:])
    return _sides_case(name, inputs, wrap(functional.similarity_lse), wrap(similarities.eager_lse), sweeps, shapes)


#: Shapes of masked image modelling: tokens (N, L, D), and images by (N, width).
_TOKENS = ((1, 1, 1), (3, 5, 2), (2, 40, 33), (4, 70, 128), (5, 131, 24))
_LATENTS = ((1, 3), (3, 40), (5, 131))
_IMAGES = ((1, 2), (3, 5), (8, 16), (33, 20), (70, 48))


def _crops_case(name, wrap, ours, eager) -> OpCase:
    """Logits over prototypes: two exponentials of each element and some sums."""
    moved = lambda s, itemsize: 5 * math.prod(s) * itemsize  # noqa: E731
    flops = lambda s: 10 * math.prod(s)  # noqa: E731
    return OpCase(name, crops.student_inputs, wrap(ours), wrap(eager), flops, moved, ((1, 3), (8, 16), (33, 20)), logits=40.0)


def _masking_case(name, inputs, wrap, ours, eager, shapes, flops=lambda s: 0.0, **how) -> OpCase:
    moved = lambda s, itemsize: 3 * math.prod(s) * itemsize  # noqa: E731
    return OpCase(name, inputs, wrap(ours, **how), wrap(eager, **how), flops, moved, shapes)


def _sketched_case(name, inputs, ours, eager) -> OpCase:
    """Of SLICES directions: two products in the forward and four in the backward."""
    shapes = ((2, 1), (9, 16), (70, 20), (300, 65))
    flops = lambda s: 6 * s[0] * s[1] * sketched.SLICES  # noqa: E731
    return OpCase(name, inputs, ours, eager, flops, lambda s, itemsize: 3 * s[0] * s[1] * itemsize, shapes)


#: Fewer rows than columns, and more: N x N and D x D forms.
_FEW_AND_MANY = ((3, 9), (7, 40), (24, 9))


def _statistic_case(name, inputs, ours, eager, sweeps) -> OpCase:
    """A loss of the statistics of a batch; ``sweeps``: the least FLOPs of forward and backward, in units of 2 N^2 D."""
    return OpCase(name, inputs, ours, eager, lambda s: sweeps * 2 * s[0] ** 2 * s[1], _pair_bytes, _FEW_AND_MANY)


_D, _F, _E, _L, _M, _R, _S = distillation, functional, contrastive, latents, masking, redundancy, similarities
_ONE = ((1, 3),)
#: No similarity of unit rows is above such a limit. One near a limit would count in one dtype and not in another.
_MARGIN = 2.5
CASES = {
    case.name: case
    for case in (
        _lse_case("similarity_symmetric", inputs.symmetric_inputs, _S.symmetric, 2),
        _lse_case("similarity_two_sided", inputs.two_sided_inputs, _S.two_sided, 4),
        _lse_case("similarity_one_pass", inputs.one_pass_inputs, _S.one_pass, 2),
        _sides_case("similarity_limited", inputs.two_sided_inputs, _S.ours_limited, _S.eager_limited, 4),
        _sides_case("similarity_cross", inputs.sides_inputs, _S.ours_cross, _S.eager_cross, 4),
        _sides_case("sigmoid_pair", inputs.sigmoid_inputs, _S.ours_sigmoid, _S.eager_sigmoid, 3),
        _pair_case("nt_xent", _F.nt_xent, _E.nt_xent, _ONE),
        _pair_case("dcl", _F.dcl, _E.dcl),  # one pair has no negatives
        _pair_case("debiased_nt_xent", _F.debiased_nt_xent, _E.debiased_nt_xent),
        _pair_case("hard_nt_xent", _F.hard_nt_xent, _E.hard_nt_xent),
        _cosine_case("negative_cosine", _F.negative_cosine, _E.negative_cosine),
        _cosine_case("byol", _F.byol_loss, _E.byol),
        _loss_case("info_nce", inputs.queries, _F.info_nce, _E.info_nce, first=_ONE),
        _loss_case("info_nce_unpaired", inputs.keys_and_negatives, _F.info_nce, _E.info_nce_unpaired, first=_ONE),
        _loss_case(
            "info_nce_paired", inputs.paired_inputs, partial(_F.info_nce, negative_mode="paired"), _E.info_nce_paired, first=_ONE
        ),
        _loss_case(
            "info_nce_hard",
            inputs.hard_inputs,
            partial(_F.info_nce, temperature=0.05, hard_negative_weight=0.3),
            partial(_E.info_nce_hard, weight=0.3),
            first=_ONE,
            logits=20.0,
        ),
        _loss_case(
            "info_nce_passages",
            inputs.passages_inputs,
            partial(_F.info_nce, margin=_MARGIN),
            partial(_E.info_nce_passages, margin=_MARGIN),
            columns=lambda s: 3 * s[0],
            first=_ONE,
        ),
        _loss_case("clip", inputs.image_text, _F.clip_loss, _E.clip, first=_ONE, logits=14.0),
        _loss_case("clip_grouped", inputs.image_text, _clip_grouped(_F.clip_loss), _clip_grouped(_E.clip), first=_ONE, logits=14.0),
        _loss_case("siglip", inputs.image_text_bias, _F.siglip_loss, _E.siglip, sweeps=3.0, first=_ONE, logits=19.0),
        _loss_case(
            "siglip_grouped",
            inputs.image_text_bias,
            _siglip_grouped(_F.siglip_loss, weighting="balanced"),
            _siglip_grouped(_E.siglip, balanced=True),
            sweeps=3.0,
            logits=19.0,
        ),
        _loss_case("moco", inputs.moco_inputs, _moco(_F.moco_loss), _moco(_E.moco), sweeps=2.0, logits=1 / 0.07),
        *(
            _loss_case(name, inputs.sup_con_inputs, wrap(_F.sup_con), wrap(_E.sup_con), first=_ONE, logits=1 / 0.07)
            for name, wrap in (("sup_con", _sup_con), ("sup_con_masked", _sup_con_masked))
        ),
        _statistic_case("barlow_twins", inputs.two_views, _F.barlow_twins, _R.barlow_twins, 4),
        _statistic_case("vicreg", inputs.two_views, partial(_F.vicreg, form="gram"), _R.vicreg, 4),
        _statistic_case("gram_loss", _R.images, _R.with_teacher(_F.gram_loss), _R.with_teacher(_R.gram_loss), 9),
        _statistic_case("cka", _R.one_image, _R.with_teacher(_F.cka), _R.with_teacher(_R.cka), 3),
        _crops_case("soft_cross_entropy", _D.heads_case, _D.heads_loss(_F.soft_cross_entropy), _D.of_heads),
        _crops_case("soft_cross_entropy_given", _D.given_case, _D.given_loss(_F.soft_cross_entropy), _D.of_given),
        _crops_case("dino", crops.dino_case, _F.dino_loss, crops.dino),
        _crops_case("ibot", crops.ibot_case, _F.ibot_loss, crops.ibot),
        _crops_case("swav", crops.swav_case, _F.swav_loss, crops.swav),
        OpCase(
            "koleo",
            _L.rows,
            _F.koleo,
            _L.koleo,
            flops=lambda s: s[0] ** 2 * s[1],
            bytes=lambda s, itemsize: 2 * math.prod(s) * itemsize,
            shapes=((2, 3), (8, 16), (65, 20)),
        ),
        OpCase(
            "sampled_info_nce",
            sampled.tables,
            sampled.with_index(_F.sampled_info_nce),
            sampled.with_index(sampled.sampled_info_nce),
            flops=lambda s: 6 * s[0] * (1 + len(sampled.SHIFTS)) * s[2],
            bytes=lambda s, itemsize: 2 * (s[0] + s[1]) * s[2] * itemsize,
            shapes=((1, 1, 3), (5, 3, 2), (64, 64, 32), (130, 257, 33)),
            logits=5.0,
        ),
        OpCase(
            "word_pairs",
            words.tables,
            words.with_ids(partial(_F.word_pairs, sparse=False)),
            words.with_ids(words.word_pairs),
            flops=lambda s: (6 + 4 * len(words.SHIFTS)) * s[0] * s[2],
            bytes=lambda s, itemsize: 2 * (s[0] + s[1]) * s[2] * itemsize,
            shapes=((1, 1, 3), (5, 3, 2), (64, 64, 32), (130, 257, 33)),
            logits=5.0,
        ),
        *(
            _masking_case(name, _L.predictions, _L.latent_case, _F.masked_latent_loss, _L.masked_latent, _LATENTS, **how)
            for name, how in (
                ("masked_latent", {"beta": 0.5}),
                ("masked_latent_weighted", {"loss": 1.5, "whole": True, "normalize": False, "reduction": "none"}),
            )
        ),
        _masking_case("gather_tokens", _M.token_inputs, _M.gather_case, _F.gather_tokens, _M.gather, _TOKENS),
        _masking_case("restore_tokens", _M.restore_inputs, _M.restore_case, _F.restore_tokens, _M.restore_tokens, _TOKENS),
        _masking_case(
            "embed_visible",
            _M.embed_inputs,
            _M.embed_case,
            _F.embed_visible,
            _M.embed_visible,
            _IMAGES,
            flops=lambda s: 4 * s[0] * 6 * s[1] * 12,
        ),
        _masking_case("patch_loss", _M.pred_inputs, _M.loss_case, _F.masked_patch_loss, _M.patch_loss, _IMAGES),
        _masking_case(
            "patch_loss_normalized",
            _M.pred_inputs,
            _M.loss_case,
            _F.masked_patch_loss,
            _M.patch_loss,
            _IMAGES,
            norm_pix_loss=True,
            layout="cpq",
        ),
        _masking_case(
            "patch_loss_l1_of_ids",
            _M.pred_inputs,
            _M.loss_case,
            _F.masked_patch_loss,
            _M.patch_loss,
            _IMAGES,
            compact=True,
            loss="l1",
        ),
        *(
            _sketched_case(name, inputs, sketched.with_directions(ours, **how), sketched.with_directions(eager, **how))
            for name, inputs, ours, eager, how in (
                ("sigreg", sketched.embeddings, _F.sigreg, sketched.sigreg, {}),
                ("sigreg_knots", sketched.embeddings, _F.sigreg, sketched.sigreg, {"knots": 6, "t_max": 5.0}),
            )
        ),
        _sketched_case(
            "lejepa",
            sketched.views,
            sketched.with_seed(_F.lejepa_loss, global_views=2),
            sketched.eager_with_seed(sketched.lejepa, global_views=2),
        ),
        _sketched_case("sorted_slices", sketched.views, sketched.shape_of, sketched.eager_shape_of),
    )
}
