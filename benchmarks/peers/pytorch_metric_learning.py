"""pytorch-metric-learning: ``NTXentLoss`` as for SimCLR, and ``SupConLoss``. Both normalise, since their distance is the cosine.

Up to version 2.9, NTXentLoss compares every positive pair with every negative pair in O(N^3) memory: N = 512 takes 2.2 GB, N = 1024
about 17 GB.
"""

from fastssl.testing.contrastive import sample_labels

from . import Peer


def _nt_xent(temperature: float):
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    module = SelfSupervisedLoss(NTXentLoss(temperature=temperature))
    return lambda z0, z1: module(z0, z1)


def _sup_con(temperature: float):
    from pytorch_metric_learning.losses import SupConLoss

    module = SupConLoss(temperature=temperature)

    def call(features):
        return module(features.transpose(0, 1).flatten(0, 1), sample_labels(features).repeat(features.shape[1]))

    return call


class _PmlPeer(Peer):
    """A peer whose NTXentLoss runs out of memory at much smaller N than its SupConLoss."""

    def unfit(self, workload, shape, device: str) -> tuple[str, str]:
        limit = {"cpu": 512, "cuda": 1024}[device]
        if workload.name == "nt_xent" and workload.rows(shape) > limit:
            return "too large", f"not tried above N = {limit} rows on this device"
        return super().unfit(workload, shape, device)


PEER = _PmlPeer(
    "pytorch_metric_learning",
    {"nt_xent": _nt_xent, "sup_con": _sup_con},
    distribution="pytorch-metric-learning",
    module="pytorch_metric_learning",
    max_rows={"cpu": 8192, "cuda": 32768},
)
