"""memeff (MemoryEfficientCLIP): Triton losses for CLIP, LiT and Qwen3-style InfoNCE on CUDA.

It has no NT-Xent and no one-directional in-batch loss, and its temperature is a Python number without gradient, so it cannot train
the learned scale of the workload "clip". The signature was read in the 0.3.1 wheel.
"""

from . import Peer

PEER = Peer(
    "memeff",
    {},
    distribution="memeff",
    module="memeff",
    differs={
        "nt_xent": "CLIP's two directions over the other view only; no self mask, no columns of the own view",
        "dcl": "CLIP's two directions over the other view only",
        "info_nce": "always both directions; this workload has one",
        "clip": "no gradient of the scale",
    },
    devices=("cuda",),
)
