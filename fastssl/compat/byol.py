"""Drop-ins for byol-pytorch: ``byol_pytorch.byol_pytorch.update_moving_average = update_moving_average`` speeds its BYOL up."""

from torch import Tensor, nn

from ._common import average_parameters, check_share

__all__ = ["EMA", "update_moving_average"]


class EMA:
    """The share of the average that is kept, as the class of byol-pytorch holds it.

    Args:
        beta: the share that is kept, in [0, 1]. The attribute ``beta`` may be set between updates.

    Raises:
        TypeError, ValueError: ``beta`` is no number in [0, 1].

    Examples:
        >>> EMA(0.75).update_average(torch.zeros(2), torch.ones(2))
        tensor([0.2500, 0.2500])
    """

    def __init__(self, beta: float):
        check_share("EMA", "beta", beta)
        self.beta = beta

    def update_average(self, old: Tensor | None, new: Tensor) -> Tensor:
        """The average of two tensors.

        Args:
            old: the average so far, float, of the shape of ``new``; None where there is none yet.
            new: the new values.

        Returns:
            beta old + (1 - beta) new, a new tensor; ``new`` itself where ``old`` is None.
        """
        return new if old is None else old * self.beta + (1 - self.beta) * new


def update_moving_average(ema_updater: EMA, ma_model: nn.Module, current_model: nn.Module) -> None:
    """Moves all parameters of a teacher towards those of a student in one launch, in place; buffers stay.

    ``ma_model <- beta ma_model + (1 - beta) current_model``

    Args:
        ema_updater: of which only ``beta`` is read; an ``update_average`` of the user's own is not called.
        ma_model: the teacher, written in place.
        current_model: the student, with parameters of the same shapes in the same order.

    Raises:
        TypeError, ValueError: the modules do not belong together; nothing is changed then.

    Examples:
        >>> student, teacher = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> wanted = 0.75 * teacher.weight + 0.25 * student.weight
        >>> update_moving_average(EMA(0.75), teacher, student)
        >>> torch.allclose(teacher.weight, wanted)
        True
    """
    average_parameters("update_moving_average", ("current_model", "ma_model"), current_model, ma_model, ema_updater.beta)
