"""open_clip: ``ClipLoss()`` and ``SigLipLoss()`` in one process, of normalised features.

CLIP computes two products, one for each direction. The losses store about 4 (CLIP) and 5 (SigLIP) N x N matrices. The library needs
ftfy, and a torchvision that can be imported.
"""

from . import Peer, ready_torchvision


def _loss(name: str):
    ready_torchvision()
    from open_clip import loss

    return getattr(loss, name)()


def _clip():
    module = _loss("ClipLoss")
    return lambda image, text, logit_scale: module(image, text, logit_scale.to(image.dtype))


def _siglip():
    module = _loss("SigLipLoss")
    return lambda image, text, logit_scale, logit_bias: module(image, text, logit_scale.to(image.dtype), logit_bias.to(image.dtype))


PEER = Peer(
    "open_clip",
    {"clip": _clip, "siglip": _siglip},
    distribution="open_clip_torch",
    module="open_clip",
    max_rows={"cpu": 16384},
)
