"""One row for each op or loss: how to make its inputs, the call, the same in eager PyTorch, and its work.

A call takes the differentiable inputs by name and returns one tensor. Eager forms are what a careful user would write; in
float64 they are the truth, in the dtype of the case they are the error to compare with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional
from fastssl.checks import accumulator_dtype
from fastssl.ops.sigmoid_pair import sigmoid_pair
from fastssl.ops.similarity_cross import similarity_cross

from . import contrastive, masking


@dataclass(frozen=True)
class OpCase:
    """``inputs(shape, dtype, device, seed)`` gives the differentiable tensors; ``ours`` and ``eager`` take them as keywords.

    ``flops(shape)`` is the least work of forward + backward; ``bytes(shape, itemsize)`` inputs read and gradients written once.
    """

    name: str
    inputs: Callable[..., dict[str, Tensor]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    flops: Callable[[tuple], float]
    bytes: Callable[[tuple, int], float]
    shapes: tuple[tuple, ...] = field(default=())
    logits: float = 0.0  # their size, if any: a loss is no better than float32 holds them

    def shape(self, b: int, d: int) -> tuple[int, ...]:
        """A shape of this case with about b rows of width d: (b, b + 2, d), or (b, d)."""
        return (b, b + 2, d) if len(self.shapes[0]) == 3 else (b, d)


SEED = 0  # added to every seed of the table: other inputs for all of its rows


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + seed)


def randn(shape, dtype, device, seed) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64).to(dtype).to(device)


def two_views(shape, dtype=torch.float32, device="cpu", seed=0, noise=0.5) -> dict[str, Tensor]:
    """z0, z1 (B, D): a base plus noise of its own for each view, so that positives are closer than negatives."""
    base, a, b = (torch.randn(shape, generator=_generator(seed + k), dtype=torch.float64) for k in range(3))
    return {"z0": (base + noise * a).to(dtype).to(device), "z1": (base + noise * b).to(dtype).to(device)}


def _unit_rows(shape, dtype, device, seed) -> Tensor:
    return F.normalize(torch.randn(shape, generator=_generator(seed), dtype=torch.float64), dim=1).to(dtype).to(device)


def in_seven_bits(x: Tensor) -> Tensor:
    """x in [-1, 1] to multiples of 1/128, which every dtype holds: a constant that is the same in all of them."""
    return (x * 128).round() / 128


# --- similarity_lse ---------------------------------------------------------------------------------- shape (N, M, D)


def eager_lse(x, y, scale=1.0, x_id=None, y_id=None, y_bias=None) -> Tensor:
    s = scale * (x @ y.T).to(accumulator_dtype(x))
    if y_bias is not None:
        s = s + y_bias
    if x_id is not None:
        s = s.masked_fill(x_id[:, None] == y_id[None, :], -math.inf)
    return torch.logsumexp(s, 1)


def _two_sided_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    n, m, d = shape
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "x": _unit_rows((n, d), dtype, device, seed),
        "y": _unit_rows((m, d), dtype, device, seed + 1),
        "y_bias": randn((m,), wide, device, seed + 2),
        "scale": torch.tensor(10.0, dtype=wide, device=device),
    }


def _ids(x, y):
    """A third of the columns are excluded from each row; row and column counts need not match."""
    rows, columns = (torch.arange(len(t), device=t.device) % 3 for t in (x, y))
    return {"x_id": rows, "y_id": columns}


def _two_sided(lse):
    return lambda x, y, y_bias, scale: lse(x, y, scale=scale, y_bias=y_bias, **_ids(x, y))


def _symmetric_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    return {"x": _unit_rows((shape[0], shape[2]), dtype, device, seed), "scale": _two_sided_inputs(shape, dtype, device)["scale"]}


def _symmetric(lse):
    def call(x, scale):
        ids = torch.arange(len(x), device=x.device) % max(1, len(x) // 2)
        return lse(x, x, scale=scale, x_id=ids, y_id=ids)

    return call


def _one_pass_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    inputs = _two_sided_inputs(shape, dtype, device, seed)
    return {"x": inputs["x"], "scale": inputs["scale"]}


def _one_pass(lse):
    """The columns are a constant of the call, as a queue is: made from the rows' width, no gradient."""

    def call(x, scale, columns=37):
        angles = torch.arange(columns * x.shape[1], device=x.device, dtype=torch.float64).reshape(columns, -1) ** 2
        y = in_seven_bits(F.normalize(angles.sin(), dim=1)).to(x.dtype)
        return lse(x, y, scale=scale, x_id=torch.arange(len(x), device=x.device), y_id=torch.arange(columns, device=x.device))

    return call


# --- contrastive losses ---------------------------------------------------------------------------------- shape (B, D)


def _prediction_inputs(*args, **kwargs) -> dict[str, Tensor]:
    views = two_views(*args, **kwargs)
    return {"p": views["z0"], "z": views["z1"]}


def _pair_flops(shape) -> float:
    """Forward and backward at the symmetric, triangular minimum: 2U, U = 2 (2B)^2 D."""
    b, d = shape
    return 2 * 2 * (2 * b) ** 2 * d


def _pair_bytes(shape, itemsize) -> float:
    return 2 * 2 * shape[0] * shape[1] * itemsize


def _sides_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    inputs = _two_sided_inputs(shape, dtype, device, seed)
    return {"x": inputs["x"], "y": inputs["y"], "scale": inputs["scale"]}


def ours_cross(x, y, scale) -> Tensor:
    row, column, _ = similarity_cross(x, y, scale=scale, **_ids(x, y))
    return torch.cat([row, column])


def eager_cross(x, y, scale) -> Tensor:
    ids = _ids(x, y)
    swapped = {"x_id": ids["y_id"], "y_id": ids["x_id"]}
    return torch.cat([eager_lse(x, y, scale, **ids), eager_lse(y, x, scale, **swapped)])


def _sigmoid_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    inputs = _sides_inputs(shape, dtype, device, seed)
    return inputs | {"bias": torch.tensor(-3.0, dtype=inputs["scale"].dtype, device=device)}


def _weights(x, y):
    """One positive in three, so that both kinds of pairs weigh; weights differ by row and column."""
    rows, columns = (0.2 + torch.arange(len(t), device=t.device) % 5 / 5.0 for t in (x, y))
    return _ids(x, y) | {"x_weight": rows, "y_weight": columns}


def ours_sigmoid(x, y, scale, bias) -> Tensor:
    return sigmoid_pair(x, y, scale=scale, bias=bias, **_weights(x, y))


def eager_sigmoid(x, y, scale, bias) -> Tensor:
    """Differentiated by autograd, unlike the reference, whose gradients are written by hand."""
    given = _weights(x, y)
    s = contrastive.logits(x, y, scale) + bias
    same = given["x_id"][:, None] == given["y_id"]
    weight = torch.where(same, (given["x_weight"][:, None] + given["y_weight"]).to(s.dtype), 1.0)
    return (weight * F.softplus(torch.where(same, -s, s), threshold=40.0)).sum()


def keys_and_negatives(shape, dtype=torch.float32, device="cpu", seed=0, paired=False) -> dict[str, Tensor]:
    views = two_views(shape, dtype, device, seed)
    b, d = shape
    extra = randn((b, 5, d) if paired else (b, d), dtype, device, seed + 7)
    return {"query": views["z0"], "positive_key": views["z1"], "negative_keys": extra}


def _paired_inputs(*args, **kwargs):
    return keys_and_negatives(*args, **kwargs, paired=True)


def _hard_inputs(*args, **kwargs):
    inputs = keys_and_negatives(*args, **kwargs)
    return {"query": inputs["query"], "positive_key": inputs["positive_key"], "hard_negative_keys": inputs["negative_keys"]}


def _queries(shape, dtype=torch.float32, device="cpu", seed=0):
    views = two_views(shape, dtype, device, seed)
    return {"query": views["z0"], "positive_key": views["z1"]}


def image_text(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """Unit rows and a learned scale, as CLIP's encoders leave them."""
    views = two_views(shape, torch.float64, "cpu", seed)
    image, text = (F.normalize(views[z], dim=1).to(dtype).to(device) for z in ("z0", "z1"))
    return {
        "image": image,
        "text": text,
        "logit_scale": torch.tensor(14.0, dtype=torch.promote_types(dtype, torch.float32), device=device),
    }


def image_text_bias(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    inputs = image_text(shape, dtype, device, seed)
    return inputs | {"logit_bias": torch.full_like(inputs["logit_scale"], -5.0)}


def _groups(x: Tensor) -> Tensor:
    """Four of five rows have a partner of their group."""
    return torch.arange(len(x), device=x.device) * 3 // 5


def _clip_grouped(call):
    return lambda image, text, logit_scale: call(image, text, logit_scale, ids=_groups(image), label_smoothing=0.1)


def _siglip_grouped(call, **balanced):
    def run(image, text, logit_scale, logit_bias):
        ids = _groups(image)
        return call(image, text, logit_scale, logit_bias, image_id=ids, text_id=ids.flip(0), **balanced)

    return run


def moco_inputs(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    pairs = image_text(shape, dtype, device, seed)
    return {"query": pairs["image"], "key": pairs["text"]}


def _moco(call, keys=70):
    """The queue is a constant of the call: made from arithmetic that a compiled graph can trace."""

    def run(query, key):
        angles = torch.arange(query.shape[1] * keys, device=query.device, dtype=torch.float64).reshape(query.shape[1], keys) ** 2
        return call(query, key, in_seven_bits(F.normalize(angles.sin(), dim=0)).to(query.dtype))

    return run


def sup_con_inputs(shape, dtype=torch.float32, device="cpu", seed=0, views=3) -> dict[str, Tensor]:
    b, d = shape
    base, noise = randn((b, 1, d), torch.float64, "cpu", seed), randn((b, views, d), torch.float64, "cpu", seed + 1)
    return {"features": F.normalize(base + 0.5 * noise, dim=2).to(dtype).to(device)}


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
    """``sweeps``: least forward and backward work, in units of 2 N M D."""
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
    return OpCase(name, two_views, ours, eager, _pair_flops, _pair_bytes, (*first, *_SHAPES), logits=10.0)


def _cosine_case(name, ours, eager) -> OpCase:
    """Only the similarities of the pairs: three dots a row forward, a dot and a projection for each side backward."""
    return OpCase(name, _prediction_inputs, ours, eager, lambda s: 14 * s[0] * s[1], _pair_bytes, ((1, 3), *_SHAPES), logits=1.0)


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
    return _sides_case(name, inputs, wrap(functional.similarity_lse), wrap(eager_lse), sweeps, shapes)


# --- masked image modelling ------------------------------------------------------------------ shape (N, L, D) or (N, width)

_TOKENS = ((1, 1, 1), (3, 5, 2), (2, 40, 33), (4, 70, 128), (5, 131, 24))
_IMAGES = ((1, 2), (3, 5), (8, 16), (33, 20), (70, 48))


def _masking_case(name, inputs, wrap, ours, eager, shapes, flops=lambda s: 0.0, **how) -> OpCase:
    moved = lambda s, itemsize: 3 * math.prod(s) * itemsize  # noqa: E731
    return OpCase(name, inputs, wrap(ours, **how), wrap(eager, **how), flops, moved, shapes)


_F, _E, _ONE, _M = functional, contrastive, ((1, 3),), masking
CASES = {
    case.name: case
    for case in (
        _lse_case("similarity_symmetric", _symmetric_inputs, _symmetric, 2),
        _lse_case("similarity_two_sided", _two_sided_inputs, _two_sided, 4),
        _lse_case("similarity_one_pass", _one_pass_inputs, _one_pass, 2),
        _sides_case("similarity_cross", _sides_inputs, ours_cross, eager_cross, 4),
        _sides_case("sigmoid_pair", _sigmoid_inputs, ours_sigmoid, eager_sigmoid, 3),
        _pair_case("nt_xent", _F.nt_xent, _E.nt_xent, _ONE),
        _pair_case("dcl", _F.dcl, _E.dcl),  # one pair has no negatives
        _pair_case("debiased_nt_xent", _F.debiased_nt_xent, _E.debiased_nt_xent),
        _pair_case("hard_nt_xent", _F.hard_nt_xent, _E.hard_nt_xent),
        _cosine_case("negative_cosine", _F.negative_cosine, _E.negative_cosine),
        _cosine_case("byol", _F.byol_loss, _E.byol),
        _loss_case("info_nce", _queries, _F.info_nce, _E.info_nce, first=_ONE),
        _loss_case("info_nce_unpaired", keys_and_negatives, _F.info_nce, _E.info_nce_unpaired, first=_ONE),
        _loss_case("info_nce_paired", _paired_inputs, partial(_F.info_nce, negative_mode="paired"), _E.info_nce_paired, first=_ONE),
        _loss_case(
            "info_nce_hard",
            _hard_inputs,
            partial(_F.info_nce, temperature=0.05, hard_negative_weight=0.3),
            partial(_E.info_nce_hard, weight=0.3),
            first=_ONE,
            logits=20.0,
        ),
        _loss_case("clip", image_text, _F.clip_loss, _E.clip, first=_ONE, logits=14.0),
        _loss_case("clip_grouped", image_text, _clip_grouped(_F.clip_loss), _clip_grouped(_E.clip), first=_ONE, logits=14.0),
        _loss_case("siglip", image_text_bias, _F.siglip_loss, _E.siglip, sweeps=3.0, first=_ONE, logits=19.0),
        _loss_case(
            "siglip_grouped",
            image_text_bias,
            _siglip_grouped(_F.siglip_loss, weighting="balanced"),
            _siglip_grouped(_E.siglip, balanced=True),
            sweeps=3.0,
            logits=19.0,
        ),
        _loss_case("moco", moco_inputs, _moco(_F.moco_loss), _moco(_E.moco), sweeps=2.0, logits=1 / 0.07),
        *(
            _loss_case(name, sup_con_inputs, wrap(_F.sup_con), wrap(_E.sup_con), first=_ONE, logits=1 / 0.07)
            for name, wrap in (("sup_con", _sup_con), ("sup_con_masked", _sup_con_masked))
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
    )
}
