"""An EMA one tensor after another, as in DINO's training loop: e.mul_(m), then e.add_((1 - m) p)."""

from . import Peer


def _ema(momentum: float):
    def bind(state):
        def step():
            for e, p in zip(state["ema"], state["params"], strict=True):
                e.data.mul_(momentum).add_((1 - momentum) * p.detach().data)

        return step

    return bind


PEER = Peer("loop", {"ema": _ema})
