"""pytorch-metric-learning: ``SelfSupervisedLoss(NTXentLoss(temperature))``, its SimCLR form. Normalises by its cosine distance.

Up to 2.9 it compares every positive pair with every negative pair, O(N^3) memory: N = 512 takes 2.2 GB, N = 1024 about 17 GB.
"""

from . import Peer


def _nt_xent(temperature: float):
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    module = SelfSupervisedLoss(NTXentLoss(temperature=temperature))
    return lambda z0, z1: module(z0, z1)


PEER = Peer(
    "pytorch_metric_learning",
    {"nt_xent": _nt_xent},
    distribution="pytorch-metric-learning",
    module="pytorch_metric_learning",
    max_rows={"cpu": 512, "cuda": 1024},
)
