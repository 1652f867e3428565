"""The operations of the MoCo repository, in its order: e.data = m e + (1 - m) p in new memory; a copy of the queue, and all logits
stored; the host reads the pointer and assigns a slice of the queue. The batch must divide the queue."""

import torch
import torch.nn.functional as F

from fastssl.testing.updates import moco_step

from . import Peer


def _ema(momentum: float):
    def bind(state):
        def step():
            for e, p in zip(state["ema"], state["params"], strict=True):
                e.data = e.data * momentum + p.data * (1.0 - momentum)

        return step

    return bind


@torch.no_grad()
def enqueue(queue, ptr, keys) -> None:
    """Writes keys (N, D) into the queue (D, K) from ``ptr`` (1,) on."""
    start, count = int(ptr), len(keys)
    queue[:, start : start + count] = keys.T
    ptr[0] = (start + count) % queue.shape[1]


def loss(q, k, queue, temperature: float):
    """The loss of q, k (N, D), unit rows, and a queue (D, K). The cross-entropy is in float32, as under autocast."""
    positive = torch.einsum("nd,nd->n", q, k)[:, None]
    negative = torch.einsum("nd,dk->nk", q, queue.clone().detach())
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits.float(), torch.zeros(len(q), dtype=torch.int64, device=q.device))


def moco(loss, early=True):
    """The form of MoCo's step with a loss like that of this file. ``early``: the push comes before the backward, as in MoCo."""

    def form(temperature: float):
        def bind(state):
            return moco_step(
                state,
                lambda q, k: loss(q, k, state["queue"], temperature),
                lambda k: enqueue(state["queue"], state["ptr"], k),
                early,
            )

        return bind

    return form


PEER = Peer(
    "moco_repository",
    {
        "ema": _ema,
        "queue_push": lambda: lambda state: lambda: enqueue(state["queue"], state["ptr"], state["keys"]),
        "moco_step": moco(loss),
    },
)
