"""Inf-CL: ``cal_flash_loss(q, k, scale=, head_dim=)``, one direction, with an online maximum; in TF32 even for float32.

The function does not normalise. ``head_dim`` must be a power of two from 16 to 256 that divides D; its default of 256 fails for
D = 128. Two other functions are not used: ``cal_inf_loss`` asks torch.distributed for its rank, and ``cal_ring_loss`` subtracts no
maximum. The signature was read in the 1.2.1 wheel; this adaptor has not run.
"""

import torch.nn.functional as F

from . import Peer


def _head_dim(d: int) -> int:
    for width in (256, 128, 64, 32, 16):
        if d % width == 0:
            return width
    raise ValueError(f"inf_cl: D must be a multiple of 16, got {d}")


def _info_nce(temperature: float):
    from inf_cl import cal_flash_loss

    def call(query, positive_key):
        q, k = F.normalize(query, dim=1), F.normalize(positive_key, dim=1)
        return cal_flash_loss(q, k, scale=1.0 / temperature, head_dim=_head_dim(q.shape[1])).mean()

    return call


def _clip():
    from inf_cl import cal_flash_loss

    def call(image, text, logit_scale):
        width = _head_dim(image.shape[1])
        one, other = (cal_flash_loss(a, b, scale=logit_scale, head_dim=width).mean() for a, b in ((image, text), (text, image)))
        return 0.5 * (one + other)

    return call


_REASON = "one direction over the other view only; no self mask"

PEER = Peer(
    "inf_cl",
    {"info_nce": _info_nce, "clip": _clip},
    distribution="inf_cl",
    module="inf_cl",
    differs={"nt_xent": _REASON, "dcl": _REASON},
    devices=("cuda",),
)
