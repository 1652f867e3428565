"""memeff (MemoryEfficientCLIP): Triton losses for CLIP, LiT and Qwen3-style InfoNCE on CUDA.

It has no NT-Xent and no one-directional in-batch loss, so no work here shares its objective; the form below is its symmetric CLIP
loss (mean of both directions), for a work of that name. ``stable=False`` because the default scales the gradient by
sqrt(B tau). Signature read in the 0.3.1 wheel; this adaptor has not run.
"""

from . import Peer


def _clip(temperature: float):
    from memeff import MemoryEfficientCLIPLoss

    module = MemoryEfficientCLIPLoss(temperature=temperature, normalized_inputs=False, stable=False)
    return lambda z0, z1: module(z0, z1)


PEER = Peer(
    "memeff",
    {"clip": _clip},
    distribution="memeff",
    module="memeff",
    differs={
        "nt_xent": "CLIP's two directions over the other view only; no self mask, no columns of the own view",
        "dcl": "CLIP's two directions over the other view only",
        "info_nce": "always both directions; this work is one",
    },
    devices=("cuda",),
)
