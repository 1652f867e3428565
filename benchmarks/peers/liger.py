"""Liger: ``LigerFusedLinearCrossEntropyLoss(reduction=, accum_dtype=)(lin_weight, input, target)``.

It computes chunks of rows, with a cross-entropy in Triton on each, and makes the gradients in the forward. Only its mean is used:
with reduction "none", the gradient of the columns needs the upstream gradient, which the forward does not have. The signature was
read in the 0.8.5 wheel; this adaptor has not run.
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
