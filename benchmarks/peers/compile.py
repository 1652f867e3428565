"""``torch.compile`` of the eager form, one graph, static shapes; the caller resets Dynamo between shapes."""

from functools import partial

import torch

from . import Peer

PEER = Peer(
    "compile",
    {"*": lambda work: torch.compile(partial(work.case.eager, **work.constants), fullgraph=True, dynamic=False)},
    max_rows={"cpu": 16384},
    needs_compile=True,
)
