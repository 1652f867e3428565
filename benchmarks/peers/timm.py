"""timm: ``ModelEmaV3``, which walks the state dicts and averages with _foreach_lerp_, and ``Lars``."""

from fastssl.testing.updates import as_module, with_gradients

from . import Peer, ready_torchvision


def _ema(momentum: float):
    ready_torchvision()
    from timm.utils import ModelEmaV3
    from torch import nn

    def bind(state):
        model, average = (as_module(state["model"], state[name]) for name in ("params", "ema"))
        averaged = ModelEmaV3(nn.Linear(1, 1, device=state["ema"][0].device), decay=momentum)
        averaged.module = average
        return lambda: averaged.update(model)

    return bind


def _larc(lr, momentum, weight_decay, trust_coefficient, eps):
    ready_torchvision()
    from timm.optim.lars import Lars

    def bind(state):
        options = {"momentum": momentum, "weight_decay": weight_decay, "trust_coeff": trust_coefficient, "eps": eps}
        return Lars(with_gradients(state), lr=lr, **options).step

    return bind


PEER = Peer(
    "timm",
    {"ema": _ema, "larc": _larc},
    distribution="timm",
    differs={"random_masking": "patch dropout draws its own noise, and returns neither mask nor ids_restore"},
    module="timm",
)
