"""torch.optim.AdamW(fused=True); then _foreach_lerp_ where the parameters are averaged."""

from functools import partial

from fastssl.testing.updates import torch_adamw

from . import Peer


def _adamw(**constants):
    def bind(state):
        return torch_adamw(state, **constants, fused=True, capturable=state["params"][0].is_cuda)

    return bind


PEER = Peer("fused", {name: partial(_adamw) for name in ("adamw", "adamw_ema")})
