"""``torch.compile`` of the eager form, one graph, static shapes; the caller resets Dynamo between shapes.

MoCo's step: the MoCo repository's loss, compiled, and its enqueue after the backward. The compiler drops the copy of the queue,
so that a push before the backward changes the gradient without a word (torch 2.13).

Masked image modelling: the forms of the MAE repository, compiled.
"""

from functools import partial

import torch

from . import EVERY_LOSS, Peer, masked
from .mae_repository import FORMS
from .moco_repository import loss, moco


def _compiled(call):
    return torch.compile(call, fullgraph=True, dynamic=False)


PEER = Peer(
    "compile",
    {
        EVERY_LOSS: lambda work: _compiled(partial(work.case.eager, **work.constants)),
        "moco_step": lambda temperature: moco(_compiled(loss), early=False)(temperature),
        **masked(FORMS, _compiled),
    },
    max_rows={"cpu": 16384},
    needs_compile=True,
)
