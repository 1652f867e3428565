"""lightly (Lightly AG): ``NTXentLoss(temperature)(z0, z1)`` and ``DCLLoss``; both normalise. Stores 4.2 N^2 floats.

On a GPU its boolean indexing synchronises with the host, so it cannot be captured in a CUDA graph.
"""

from . import Peer, ready_torchvision


def _loss(name: str, temperature: float):
    ready_torchvision()
    from lightly import loss

    module = getattr(loss, name)(temperature=temperature)
    return lambda z0, z1: module(z0, z1)


PEER = Peer(
    "lightly",
    {
        "nt_xent": lambda temperature: _loss("NTXentLoss", temperature),
        "dcl": lambda temperature: _loss("DCLLoss", temperature),
    },
    distribution="lightly",
    differs={"moco": "normalises inside, and its memory bank copies itself and takes the new keys in the same call"},
    module="lightly",
    max_rows={"cpu": 16384},
)
