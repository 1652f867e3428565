"""The steps of neighbours and latent targets that are measured: forward and backward, with the loss and the gradient in the state.

Forms are those of ``masked_updates.py``. The eager form of masked latents is the usual code of the JEPA repositories: normalise all
tokens of the teacher, gather the hidden ones, compare.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F

from fastssl import functional
from fastssl.testing import latents
from fastssl.testing.masked_updates import LEAVES, Given, Results, forward_backward
from fastssl.testing.updates import State, UpdateCase


def latent_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, L, K, D): target (N, L, D), ids (N, K), pred (N, K, D)."""
    n, length, hidden, width = shape
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda *sizes: torch.randn(sizes, generator=generator, device=device)  # noqa: E731
    return {
        "target": (2.0 * draw(n, length, width) + 0.5).to(dtype),
        "ids": draw(n, length).argsort(1)[:, :hidden].contiguous(),
        "pred": draw(n, hidden, width).to(dtype),
    }


def ours_latent(given: Given) -> Results:
    return {"loss": functional.masked_latent_loss(given["pred"], given["target"], given["ids"])}


def eager_latent(given: Given) -> Results:
    target = given["target"]
    h = latents.gather(F.layer_norm(target, target.shape[2:]), given["ids"])
    return {"loss": F.smooth_l1_loss(given["pred"], h)}


def koleo_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, D): z (N, D)."""
    return latents.rows(shape, dtype, device, seed)


def ours_koleo(given: Given) -> Results:
    return {"loss": functional.koleo(given["z"])}


def eager_koleo(given: Given) -> Results:
    return {"loss": latents.koleo(given["z"])}


FORMS = {"koleo": eager_koleo, "masked_latent": eager_latent}


def _case(name: str, state, ours, shared: tuple[str, ...], **work) -> UpdateCase:
    mine, eager = (partial(forward_backward, form, LEAVES[name]) for form in (ours, FORMS[name]))
    return UpdateCase(name, state, mine, eager, ("loss", f"{LEAVES[name][0]}_grad"), shared, steps=1, **work)


LATENT_CASES = {
    "koleo": _case(
        "koleo",
        koleo_state,
        ours_koleo,
        ("z",),
        bytes=lambda s, itemsize: 2.0 * math.prod(s) * itemsize,
        flops=lambda s: 1.0 * s[0] ** 2 * s[1],  # of one triangle
    ),
    "masked_latent": _case(
        "masked_latent",
        latent_state,
        ours_latent,
        ("target", "ids", "pred"),
        bytes=lambda s, itemsize: float(s[0] * s[2] * (3 * s[3] * itemsize + 8)),
    ),
}
