"""The loss or the update as a careful user writes it in PyTorch. A loss stores several (N, N) matrices."""

from functools import partial

from . import EVERY_LOSS, EVERY_UPDATE, Peer

PEER = Peer(
    "eager",
    dict.fromkeys((EVERY_LOSS, EVERY_UPDATE), lambda workload: partial(workload.case.eager, **workload.constants)),
    max_rows={"cpu": 16384},
)
