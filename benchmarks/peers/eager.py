"""The loss or the update as a careful user writes it in PyTorch; the (N, N) matrix of a loss is stored several times."""

from functools import partial

from . import EVERY_LOSS, EVERY_UPDATE, Peer

PEER = Peer(
    "eager",
    dict.fromkeys((EVERY_LOSS, EVERY_UPDATE), lambda work: partial(work.case.eager, **work.constants)),
    max_rows={"cpu": 16384},
)
