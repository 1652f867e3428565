"""Liger: ``LigerFusedLinearCrossEntropyLoss(reduction=, accum_dtype=)(lin_weight, input, target)``.

Chunks of rows with a Triton cross-entropy on each; gradients are made in the forward. Only the mean is used: with "none", the
gradient of the columns needs the upstream gradient that its forward does not have. Signature read in the 0.8.5 wheel; this
adaptor has not run.
"""

import torch

from . import Peer
from .linear_cross_entropy import in_batch


def _info_nce(temperature: float):
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    module = LigerFusedLinearCrossEntropyLoss(reduction="mean", accum_dtype=torch.float32)
    return lambda z0, z1: in_batch(lambda x, columns, target: module(columns, x, target), z0, z1, temperature)


_REASON = "cannot leave out the diagonal, and its forward-made gradients rule out per-row likelihoods"

PEER = Peer(
    "liger",
    {"info_nce": _info_nce},
    distribution="liger-kernel",
    module="liger_kernel",
    differs={"nt_xent": _REASON, "dcl": _REASON},
    devices=("cuda",),
)
