"""``torch.compile`` of the eager form, in one graph with static shapes. The caller resets Dynamo between shapes.

For MoCo's step, the loss of the MoCo repository is compiled, and its enqueue comes after the backward: torch 2.13's compiler drops
the copy of the queue, so a push before the backward would silently change the gradient.

For masked image modelling, the forms of the MAE repository are compiled; for soft targets, those of DINOv2; for neighbours and
latent targets, the eager ones.
"""

from functools import partial

import torch

from fastssl.testing import latent_updates

from . import EVERY_LOSS, Peer, dinov2_style, distilled, masked
from .mae_repository import FORMS
from .moco_repository import loss, moco


def _compiled(call):
    return torch.compile(call, fullgraph=True, dynamic=False)


PEER = Peer(
    "compile",
    {
        EVERY_LOSS: lambda workload: _compiled(partial(workload.case.eager, **workload.constants)),
        "moco_step": lambda temperature: moco(_compiled(loss), early=False)(temperature),
        **masked(FORMS | latent_updates.FORMS, _compiled),
        **distilled(dinov2_style.FORMS, _compiled),
    },
    max_rows={"cpu": 16384},
    needs_compile=True,
)
