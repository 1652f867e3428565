"""siglip-kernel: ``fused_siglip_loss(image, text, log_temperature, bias)``, SigLIP on CUDA in chunks, with Triton between products.

The function takes normalised features and the logarithm of the temperature. Its signature was read in the 0.1.2 wheel; this adaptor
has not run.
"""

from . import Peer


def _siglip():
    from siglip_kernel import fused_siglip_loss

    return lambda image, text, logit_scale, logit_bias: fused_siglip_loss(image, text, logit_scale.log(), logit_bias)


PEER = Peer(
    "siglip_kernel",
    {"siglip": _siglip},
    distribution="siglip-kernel",
    module="siglip_kernel",
    devices=("cuda",),
)
