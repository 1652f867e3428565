"""Drop-ins for lightly 1.6: memory banks, momentum update, losses, LARS, a schedule, and functions on tokens.

lightly 1.6.0 asks nowhere for its own classes (no ``isinstance``), so the classes here derive from none of them, and lightly need
not be installed.
"""

import math
import warnings
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from fastssl.checks import check_number, check_whole
from fastssl.loss.cosine import NegativeCosineSimilarity
from fastssl.loss.dino_modules import DINOLoss, IBOTPatchLoss, IBOTPlusPlusPatchLoss
from fastssl.loss.dino_modules import SwaVLoss as _SwaVLoss
from fastssl.loss.gram import PatchKernelAlignmentLoss
from fastssl.loss.koleo import KoLeoLoss
from fastssl.loss.mmcr import MMCRLoss
from fastssl.loss.nt_xent_modules import DCLLoss, DCLWLoss, NTXentLoss
from fastssl.loss.redundancy import BarlowTwinsLoss, VICRegLoss
from fastssl.loss.sigreg_modules import LeJEPALoss, VISRegLoss
from fastssl.loss.sigreg_modules import SIGRegLoss as SIGReg
from fastssl.loss.tico import TiCoLoss

from ._common import average_parameters
from ._lars import Lars
from ._lightly_bank import MemoryBankModule, NNMemoryBankModule
from ._lightly_tokens import (
    get_at_index,
    mask_at_index,
    mask_bool,
    normalize_mean_var,
    patchify,
    random_token_mask,
    repeat_token,
    set_at_index,
    unpatchify,
    vit_preprocess,
)

__all__ = [
    "LARS",
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "IBOTPlusPlusPatchLoss",
    "KoLeoLoss",
    "LeJEPALoss",
    "MMCRLoss",
    "MemoryBankModule",
    "NNMemoryBankModule",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "PatchKernelAlignmentLoss",
    "SIGReg",
    "SwaVLoss",
    "TiCoLoss",
    "VICRegLoss",
    "VISRegLoss",
    "cosine_schedule",
    "get_at_index",
    "mask_at_index",
    "mask_bool",
    "normalize_mean_var",
    "patchify",
    "random_token_mask",
    "repeat_token",
    "set_at_index",
    "unpatchify",
    "update_momentum",
    "vit_preprocess",
]


class SwaVLoss(_SwaVLoss):
    """``fastssl.loss.SwaVLoss``, whose loss has lightly's shape (1,).

    Examples:
        >>> import torch
        >>> SwaVLoss()(list(torch.randn(2, 8, 30)), list(torch.randn(6, 8, 30))).shape
        torch.Size([1])
    """

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """As there, in one dimension."""
        return super().forward(high_resolution_outputs, low_resolution_outputs, queue_outputs).reshape(1)


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """Moves all parameters of a teacher towards those of a student in one launch, in place; buffers stay. The bits are lightly's.

    ``model_ema <- m model_ema + (1 - m) model``

    Args:
        model: the student.
        model_ema: the teacher, with parameters of the same shapes in the same order; written in place.
        m: the share that is kept, in [0, 1].

    Raises:
        TypeError, ValueError: the modules do not belong together, or ``m`` is out of range; nothing is changed then.

    Examples:
        >>> model, teacher = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> wanted = 0.75 * teacher.weight + 0.25 * model.weight
        >>> update_momentum(model, teacher, 0.75)
        >>> torch.allclose(teacher.weight, wanted)
        True
    """
    average_parameters("update_momentum", ("model", "model_ema"), model, model_ema, m)


class LARS(Lars):
    """``lightly.utils.lars.LARS`` (1.6): the same arguments in the same order, group options, state and steps.

    Args:
        params: parameters or groups of them.
        lr: number of at least 0, or a one-element float tensor.
        momentum: m, in [0, 1); 0 keeps no state.
        dampening: of the momentum, from its second step on; other than 0 costs more launches.
        weight_decay: wd; a group without it takes plain steps of momentum.
        nesterov: needs momentum above 0 and a dampening of 0.
        trust_coefficient: eta.
        eps: added to the denominator of q.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['momentum_buffer']
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, options | {"nesterov": nesterov, "trust_coefficient": trust_coefficient, "eps": eps})


def cosine_schedule(step: int, max_steps: int, start_value: float, end_value: float, period: int | None = None) -> float:
    """``lightly.utils.scheduler.cosine_schedule``: half a cosine from start_value at step 0 to end_value at step max_steps - 1.

    Args:
        step: whole number of at least 0; beyond ``max_steps`` it warns (RuntimeWarning).
        max_steps: at least 0.
        start_value, end_value: finite numbers.
        period: steps of a whole cycle, which then repeats for ever; ``max_steps`` has no effect.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> [round(cosine_schedule(step, 5, 0.9, 1.0), 3) for step in range(5)]
        [0.9, 0.915, 0.95, 0.985, 1.0]
    """
    op = "cosine_schedule"
    step = check_whole(op, "step", step, 0)
    max_steps = check_whole(op, "max_steps", max_steps, 0)
    for name, value in (("start_value", start_value), ("end_value", end_value)):
        check_number(op, name, value)
    if period is not None:
        check_number(op, "period", period)
        if period <= 0:
            raise ValueError(f"{op}: period must be above 0, got {period}")
        turn = 2 * step / period
    else:
        if step > max_steps:
            warnings.warn(f"{op}: step {step} is beyond max_steps = {max_steps}", RuntimeWarning, stacklevel=2)
        if step >= max_steps - 1:
            return float(end_value)
        turn = step / (max_steps - 1)
    return float(end_value - (end_value - start_value) * (math.cos(math.pi * turn) + 1) / 2)
