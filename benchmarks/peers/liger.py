"""Liger: ``LigerFusedLinearCrossEntropyLoss(reduction=, accum_dtype=)(lin_weight, input, target)``.

Chunks of rows with a Triton cross-entropy on each; gradients are made in the forward. Only the mean is used: with "none", the
gradient of the columns needs the upstream gradient that its forward does not have. Signature read in the 0.8.5 wheel; this
adaptor has not run.
"""

import torch

from . import Peer
from .linear_cross_entropy import both_ways, in_batch


def _mean_nll():
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    module = LigerFusedLinearCrossEntropyLoss(reduction="mean", accum_dtype=torch.float32)
    return lambda x, columns, target: module(columns, x, target)


_REASON = "cannot leave out the diagonal, and its forward-made gradients rule out per-row likelihoods"

PEER = Peer(
    "liger",
    {"info_nce": lambda temperature: in_batch(_mean_nll(), temperature), "clip": lambda: both_ways(_mean_nll())},
    distribution="liger-kernel",
    module="liger_kernel",
    differs={"nt_xent": _REASON, "dcl": _REASON},
    devices=("cuda",),
)
