"""Drop-ins for byol-pytorch: ``byol_pytorch.byol_pytorch.update_moving_average = update_moving_average`` speeds its BYOL up."""

from torch import Tensor, nn

from ._common import average_parameters, check_share

__all__ = ["EMA", "update_moving_average"]


class EMA:
    """Holds ``beta``, the share that is kept, in [0, 1]."""

    def __init__(self, beta: float):
        check_share("EMA", "beta", beta)
        self.beta = beta

    def update_average(self, old: Tensor | None, new: Tensor) -> Tensor:
        """old, new: tensors of one shape -> beta old + (1 - beta) new, a new tensor; ``new`` itself where old is None."""
        return new if old is None else old * self.beta + (1 - self.beta) * new


def update_moving_average(ema_updater: EMA, ma_model: nn.Module, current_model: nn.Module) -> None:
    """ma_model <- beta ma_model + (1 - beta) current_model for all parameters in one launch, in place; buffers stay.

    Of ``ema_updater`` only ``beta`` is read: an ``update_average`` of the user's own is not called.
    """
    average_parameters("update_moving_average", ("current_model", "ma_model"), current_model, ma_model, ema_updater.beta)
