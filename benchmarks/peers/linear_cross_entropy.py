"""torch's chunked ``F.linear_cross_entropy`` (2.13 and later): rows against a "weight" of all columns, without the N x M matrix.

    in-batch InfoNCE   linear_cross_entropy(q / tau, k, arange)
    CLIP               the same in both directions, two sweeps
    NT-Xent            the function cannot leave out the diagonal, so the self column is taken out afterwards: with the target of
                       row i set to i, nll_i = lse_i - s_ii, and log(exp(lse_i) - exp(s_ii)) = s_ii + log(expm1(nll_i))

The form for NT-Xent is exact in real arithmetic, but it loses digits where the self-similarity dominates (small tau); the accuracy
check decides whether it is timed.
"""

import torch
import torch.nn.functional as F

from . import Peer


def nt_xent_by_self_target(row_nll, z0, z1, temperature: float):
    """NT-Xent from ``row_nll(x, columns, target) -> (N,)`` negative log-likelihoods, mean over the 2B rows."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    rows = torch.arange(len(z), device=z.device)
    nll = row_nll(z / temperature, z, rows).to(torch.promote_types(z.dtype, torch.float32))
    wide = z.to(nll.dtype)
    own = (wide * wide).sum(1) / temperature
    positive = (wide * wide.roll(len(z0), 0)).sum(1) / temperature
    return (own + torch.log(torch.expm1(nll)) - positive).mean()


def in_batch(mean_nll, temperature: float):
    """In-batch InfoNCE from ``mean_nll(x, columns, target)``."""

    def call(query, positive_key):
        q, k = F.normalize(query, dim=1), F.normalize(positive_key, dim=1)
        return mean_nll(q / temperature, k, torch.arange(len(q), device=q.device))

    return call


def both_ways(mean_nll):
    """CLIP from ``mean_nll``: once with the texts as columns, once with the images."""

    def call(image, text, logit_scale):
        rows = torch.arange(len(image), device=image.device)
        scale = logit_scale.to(image.dtype)
        return 0.5 * (mean_nll(scale * image, text, rows) + mean_nll(scale * text, image, rows))

    return call


def _chunked(reduction: str):
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x, columns, target: F.linear_cross_entropy(x, columns, target, reduction=reduction, options=options)


class _TorchPeer(Peer):
    def absent(self) -> str:
        there = hasattr(torch.nn, "LinearCrossEntropyOptions")
        return "" if there else f"torch {torch.__version__} has no chunked linear_cross_entropy"


PEER = _TorchPeer(
    "linear_cross_entropy",
    {
        "nt_xent": lambda temperature: lambda z0, z1: nt_xent_by_self_target(_chunked("none"), z0, z1, temperature),
        "info_nce": lambda temperature: in_batch(_chunked("mean"), temperature),
        "clip": lambda: both_ways(_chunked("mean")),
    },
    differs={
        "dcl": "cannot leave out the positive column",
        "soft_targets_given": "takes probability targets from torch 2.14 on, and multiplies rows with prototypes itself: no logits",
    },
    max_rows={"cpu": 16384},
)
