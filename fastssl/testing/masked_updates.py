"""The steps around masked image modelling, for the table of updates: forward and backward, with all results in the state.

A form is ``forward(given) -> results``: ``given`` holds the tensors of the state and the constants of the workload by name. The
state holds the upstream gradient of a result as ``g_<result>``; a loss has none. A step puts the gradients of leaves into the state
as ``<leaf>_grad``. ``idx_keep`` and ``idx_mask`` are ``ids_keep`` and the removed ids as lightly counts them: the class token is 0,
and comes first among the kept ones.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional
from fastssl.testing import masking
from fastssl.testing.updates import State, Step, UpdateCase

#: The tensors of a state and the constants of a workload, by name.
Given = dict[str, Any]
Results = dict[str, Tensor]
Forward = Callable[[Given], Results]

MASK_RATIO = 0.75
#: Workload -> inputs that get a gradient.
LEAVES = {
    "mask_ids": (),
    "random_masking": ("x",),
    "embed_visible": ("weight", "bias", "cls"),
    "restore_tokens": ("x", "mask_token"),
    "patch_loss": ("pred",),
    "patch_loss_norm": ("pred",),
    "mae_bundle": ("weight", "bias", "cls", "x", "mask_token", "pred"),
    "koleo": ("z",),
    "masked_latent": ("pred",),
    "sampled_info_nce": ("query", "keys"),
}


def forward_backward(forward: Forward, leaves: tuple[str, ...], state: State, **constants: float) -> Step:
    """The step of a form: forward, and one backward through all its results that have a gradient."""
    inputs = [name for name in state if not name.startswith("g_")]

    def step():
        given = {name: state[name].detach().requires_grad_(name in leaves) for name in inputs}
        found = forward(given | constants)
        roots = [name for name, result in found.items() if result.requires_grad]
        if roots:
            torch.autograd.backward([found[name] for name in roots], [state.get(f"g_{name}") for name in roots])
        state.update({name: result.detach() for name, result in found.items()})
        state.update({f"{name}_grad": given[name].grad for name in leaves if given[name].grad is not None})

    return step


def sequence(*parts: Forward) -> Forward:
    """One form after the other, each given the results of those before."""

    def forward(given: Given) -> Results:
        found: Results = {}
        for part in parts:
            found |= part(given | found)
        return found

    return forward


def _normal(shape, dtype, device, seed) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def _noise(n: int, length: int, device: str, seed: int) -> Tensor:
    """(N, L) float32 in (0, 1). No two values of a sample are equal, since the sorts of the libraries are not stable."""
    draws = torch.rand(n, length, generator=torch.Generator(device).manual_seed(seed), device=device)
    return (draws.argsort(1) + 0.5) / length


def kept(length: int) -> int:
    """K of L."""
    return functional.num_kept(length, MASK_RATIO)


def patch_count(side: int, patch: int) -> int:
    """L of images of side x side."""
    return (side // patch) ** 2


def mask_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """The state of a mask for a shape (N, L): noise (N, L), float32 for every dtype."""
    n, length = shape
    return {"noise": _noise(n, length, device, seed)}


def _order(n, length, device, seed) -> Results:
    """ids_keep (N, K), ids_restore and mask (N, L), idx_keep (N, 1 + K), idx_mask (N, L - K)."""
    noise = _noise(n, length, device, seed)
    shuffle, keep = noise.argsort(1), kept(length)
    return order_of(noise, keep) | {
        "idx_keep": F.pad(shuffle[:, :keep] + 1, (1, 0)),
        "idx_mask": shuffle[:, keep:] + 1,
    }


def random_masking_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, L, D): noise (N, L), x (N, L, D), and the gradient of the kept tokens (N, K, D)."""
    n, length, width = shape
    return mask_state((n, length), dtype, device, seed) | {
        "x": _normal(shape, dtype, device, seed + 1),
        "g_kept": _normal((n, kept(length), width), dtype, device, seed + 2),
    }


def embed_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, S, p, E): images (N, 3, S, S), weight (E, 3, p, p), bias (E,), pos (1, 1 + L, E), cls (1, 1, E)."""
    n, side, patch, width = shape
    length = patch_count(side, patch)
    order = _order(n, length, device, seed)
    return {
        "images": _normal((n, 3, side, side), dtype, device, seed + 1),
        "weight": _normal((width, 3, patch, patch), dtype, device, seed + 2) / (3 * patch**2) ** 0.5,
        "bias": _normal((width,), dtype, device, seed + 3),
        "pos": _normal((1, 1 + length, width), dtype, device, seed + 4),
        "cls": _normal((1, 1, width), dtype, device, seed + 5),
        "ids_keep": order["ids_keep"],
        "idx_keep": order["idx_keep"],
        "g_embedded": _normal((n, 1 + kept(length), width), dtype, device, seed + 6),
    }


def restore_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, L, D): x (N, 1 + K, D), mask_token (1, 1, D), decoder_pos (1, 1 + L, D)."""
    n, length, width = shape
    order = _order(n, length, device, seed)
    return {
        "x": _normal((n, 1 + kept(length), width), dtype, device, seed + 7),
        "mask_token": _normal((1, 1, width), dtype, device, seed + 8),
        "decoder_pos": _normal((1, 1 + length, width), dtype, device, seed + 9),
        "ids_restore": order["ids_restore"],
        "idx_keep": order["idx_keep"],
        "g_restored": _normal((n, 1 + length, width), dtype, device, seed + 10),
    }


def loss_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, S, p): images (N, 3, S, S), pred (N, L, 3 p p), mask (N, L)."""
    n, side, patch = shape
    length = patch_count(side, patch)
    order = _order(n, length, device, seed)
    return {
        "images": _normal((n, 3, side, side), dtype, device, seed + 1),
        "pred": _normal((n, length, 3 * patch**2), dtype, device, seed + 11),
        "mask": order["mask"],
        "idx_mask": order["idx_mask"],
    }


def bundle_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, S, p, E, D): noise (N, L), and what the parts take beside the ids that they make themselves."""
    n, side, patch, width, decoder_width = shape
    length = patch_count(side, patch)
    found = loss_state((n, side, patch), dtype, device, seed)
    found |= embed_state((n, side, patch, width), dtype, device, seed)
    found |= restore_state((n, length, decoder_width), dtype, device, seed)
    order = ("ids_keep", "ids_restore", "mask", "idx_keep", "idx_mask")
    return mask_state((n, length), dtype, device, seed) | {name: t for name, t in found.items() if name not in order}


def patch_side(given: Given) -> int:
    """p of pred (N, L, C p p) and images (N, C, H, W)."""
    return math.isqrt(given["pred"].shape[2] // given["images"].shape[1])


def ours_mask(given: Given) -> Results:
    noise = given["noise"]
    found = functional.mask_ids(noise.shape, given["mask_ratio"], noise=noise)
    return {"ids_keep": found.ids_keep, "ids_restore": found.ids_restore, "mask": found.mask}


def ours_random_masking(given: Given) -> Results:
    tokens, mask, ids_restore = functional.random_masking(given["x"], given["mask_ratio"], noise=given["noise"])
    return {"kept": tokens, "mask": mask, "ids_restore": ids_restore}


def order_of(noise: Tensor, keep: int) -> Results:
    """By one stable sort; the way back is its inverse."""
    shuffle = noise.argsort(dim=1, stable=True)
    places = torch.arange(noise.shape[1], device=noise.device).expand_as(shuffle)
    restore = torch.empty_like(shuffle).scatter_(1, shuffle, places)
    return {"ids_keep": shuffle[:, :keep], "ids_restore": restore, "mask": (restore >= keep).float()}


def eager_mask(given: Given) -> Results:
    return order_of(given["noise"], int(given["noise"].shape[1] * (1 - given["mask_ratio"])))


def eager_random_masking(given: Given) -> Results:
    tokens, mask, ids_restore = masking.random_masking(given["x"], given["mask_ratio"], given["noise"])
    return {"kept": tokens, "mask": mask, "ids_restore": ids_restore}


def _embed(call: Callable) -> Forward:
    def forward(given: Given) -> Results:
        images, weight, ids, bias, pos, cls = (given[name] for name in ("images", "weight", "ids_keep", "bias", "pos", "cls"))
        return {"embedded": call(images, weight, ids, bias, pos_embed=pos, prefix_tokens=cls)}

    return forward


def _restore(call: Callable) -> Forward:
    def forward(given: Given) -> Results:
        x, ids_restore, mask_token = (given[name] for name in ("x", "ids_restore", "mask_token"))
        return {"restored": call(x, ids_restore, mask_token, pos_embed=given["decoder_pos"])}

    return forward


def _loss(call: Callable) -> Forward:
    def forward(given: Given) -> Results:
        images, pred, mask = (given[name] for name in ("images", "pred", "mask"))
        return {"loss": call(images, pred, mask, patch_side(given), norm_pix_loss=given["norm_pix_loss"])}

    return forward


def forms(mask: Forward, random_masking: Forward, embed: Forward, restore: Forward, loss: Forward) -> dict[str, Forward]:
    """Workload -> form, of an implementation that has all parts."""
    return {
        "mask_ids": mask,
        "random_masking": random_masking,
        "embed_visible": embed,
        "restore_tokens": restore,
        "patch_loss": loss,
        "patch_loss_norm": loss,
        "mae_bundle": sequence(mask, embed, restore, loss),
    }


OURS = forms(
    ours_mask,
    ours_random_masking,
    _embed(functional.embed_visible),
    _restore(functional.restore_tokens),
    _loss(functional.masked_patch_loss),
)
EAGER = forms(
    eager_mask, eager_random_masking, _embed(masking.embed_visible), _restore(masking.restore_tokens), _loss(masking.patch_loss)
)


def _mask_bytes(n, length) -> float:
    return 24.0 * n * length


def _random_masking_bytes(shape, itemsize) -> float:
    n, length, width = shape
    return _mask_bytes(n, length) + float(n * (3 * kept(length) + length) * width * itemsize)


def _embed_bytes(shape, itemsize) -> float:
    """Visible pixels and output forward, both again backward; weights and their gradient."""
    n, side, patch, width = shape
    visible, pixels = kept(patch_count(side, patch)), 3 * patch**2
    return 2.0 * itemsize * (n * visible * pixels + n * (1 + visible) * width + width * pixels)


def embed_product(shape) -> tuple[int, int, int]:
    """N (1 + K) x E x 3 p p of shape (N, S, p, E, ...)."""
    n, side, patch, width = shape[:4]
    return n * (1 + kept(patch_count(side, patch))), width, 3 * patch**2


def _embed_flops(shape) -> float:
    return 2 * 2.0 * math.prod(embed_product(shape))


def _restore_bytes(shape, itemsize) -> float:
    n, length, width = shape
    return 2.0 * itemsize * n * (2 + kept(length) + length) * width


def _loss_bytes(shape, itemsize) -> float:
    n, side, patch = shape
    length = patch_count(side, patch)
    return float(itemsize * n * (4 * (length - kept(length)) + length) * 3 * patch**2)


def _bundle_bytes(shape, itemsize) -> float:
    n, side, patch, width, decoder_width = shape
    length = patch_count(side, patch)
    parts = _embed_bytes((n, side, patch, width), itemsize), _restore_bytes((n, length, decoder_width), itemsize)
    return _mask_bytes(n, length) + sum(parts) + _loss_bytes((n, side, patch), itemsize)


def _case(name: str, state, results: tuple[str, ...], shared: tuple[str, ...], moved, **work) -> UpdateCase:
    """A step makes all of its results anew, so that one is as good as two."""
    ours, eager = (partial(forward_backward, form[name], LEAVES[name]) for form in (OURS, EAGER))
    written = results + tuple(f"{leaf}_grad" for leaf in LEAVES[name])
    return UpdateCase(name, state, ours, eager, written, shared, moved, steps=1, **work)


_MASK = ("ids_restore", "mask")
_EMBED = ("images", "weight", "bias", "pos", "cls", "g_embedded")
_RESTORE = ("x", "mask_token", "decoder_pos", "g_restored")
MASKED_CASES = {
    case.name: case
    for case in (
        _case("mask_ids", mask_state, ("ids_keep", *_MASK), ("noise",), lambda s, itemsize: _mask_bytes(*s)),
        _case("random_masking", random_masking_state, ("kept", *_MASK), ("noise", "x", "g_kept"), _random_masking_bytes),
        _case("embed_visible", embed_state, ("embedded",), (*_EMBED, "ids_keep", "idx_keep"), _embed_bytes, flops=_embed_flops),
        _case("restore_tokens", restore_state, ("restored",), (*_RESTORE, "ids_restore", "idx_keep"), _restore_bytes),
        *(
            _case(name, loss_state, ("loss",), ("images", "pred", "mask", "idx_mask"), _loss_bytes)
            for name in ("patch_loss", "patch_loss_norm")
        ),
        _case(
            "mae_bundle",
            bundle_state,
            ("loss", "embedded", "restored"),
            ("noise", *_EMBED, *_RESTORE, "pred"),
            _bundle_bytes,
            flops=_embed_flops,
        ),
    )
}
