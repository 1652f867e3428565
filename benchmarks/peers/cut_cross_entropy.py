"""ml-cross-entropy (Apple): ``linear_cross_entropy(e, c, targets, reduction=, filter_eps=)`` in Triton.

The adaptor passes ``filter_eps=None``, since the default skips small gradients, which is another computation. The library is made
for bfloat16 and float16. NT-Xent is computed as in ``linear_cross_entropy``: the self column is taken out of the likelihood of its
row. The signature was read in the 25.1.1 wheel and at commit d42911f; this adaptor has not run.
"""

from . import Peer
from .linear_cross_entropy import both_ways, in_batch, nt_xent_by_self_target


def _rows(reduction: str):
    from cut_cross_entropy import linear_cross_entropy

    return lambda x, columns, target: linear_cross_entropy(x, columns, target, reduction=reduction, filter_eps=None)


PEER = Peer(
    "cut_cross_entropy",
    {
        "nt_xent": lambda temperature: lambda z0, z1: nt_xent_by_self_target(_rows("none"), z0, z1, temperature),
        "info_nce": lambda temperature: in_batch(_rows("mean"), temperature),
        "clip": lambda: both_ways(_rows("mean")),
    },
    distribution="cut-cross-entropy",
    module="cut_cross_entropy",
    differs={"dcl": "cannot leave out the positive column"},
    devices=("cuda",),
)
