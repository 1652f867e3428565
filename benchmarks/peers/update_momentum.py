"""fastssl.momentum.update_momentum: our own function on modules, which looks the parameters up at each call."""

from fastssl.testing.updates import as_module

from . import Peer


def _ema(momentum: float):
    from fastssl.momentum import update_momentum

    def bind(state):
        model, average = (as_module(state["model"], state[name]) for name in ("params", "ema"))
        return lambda: update_momentum(model, average, momentum)

    return bind


PEER = Peer("update_momentum", {"ema": _ema})
