"""torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn: _foreach_lerp_, after two reads of a counter on the device."""

from fastssl.testing.updates import as_module

from . import Peer


def _ema(momentum: float):
    from torch import nn
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    def bind(state):
        model, average = (as_module(state["model"], state[name]) for name in ("params", "ema"))
        averaged = AveragedModel(nn.Module(), device=state["ema"][0].device, multi_avg_fn=get_ema_multi_avg_fn(momentum))
        averaged.module = average
        averaged.n_averaged += 1  # the first update of a new one copies
        return lambda: averaged.update_parameters(model)

    return bind


PEER = Peer("averaged_model", {"ema": _ema})
