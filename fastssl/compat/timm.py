"""Drop-in for timm 1.0.31's ``ModelEmaV3``: the average of a whole state dict, in one launch."""

import random
from copy import deepcopy

import torch
from torch import Tensor, nn

from fastssl.momentum._tensors import average_lists, check_match, check_module

from ._common import SHARE, check_share

__all__ = ["ModelEmaV3"]

_OP = "ModelEmaV3"
_NAMES = ("module", "model", SHARE)


class ModelEmaV3(nn.Module):
    """Average of parameters and buffers of a model (``timm.utils.ModelEmaV3``, same arguments, attributes and state dict).

    ``module`` holds the average, in eval mode; ``forward`` calls it. Tensors are paired by their order in the state dicts, so the
    model may be wrapped. Buffers of integers are copied, and so are all buffers with ``exclude_buffers``.

    Args:
        model: the model to follow; ``module`` starts as a deep copy.
        decay: share of the average that is kept, in [0, 1].
        min_decay: lower bound of the decay while it warms up.
        update_after_step: until one step after this one ``update(model, step)`` copies.
        use_warmup: the decay of step s after that is ``1 - (1 + s / warmup_gamma) ** -warmup_power``, at most ``decay``.
        warmup_gamma, warmup_power: see ``use_warmup``.
        device: where the average is kept, for example on the CPU.
        dtype: keep its floating tensors in this dtype.
        stochastic_rounding: round a bfloat16 average stochastically; otherwise its small steps are lost.
        stochastic_rounding_seed: seed of the bits, which are not timm's but have their distribution.
        foreach: for tensors whose dtype is not the model's it chooses the arithmetic: product and sum, or, without, timm's
            ``lerp_`` of the model cast to the dtype of the average. It has no effect on speed.
        exclude_buffers: average the parameters, copy the buffers, those outside the state dict too.

    Raises:
        TypeError, ValueError: wrong arguments, or a model of other tensors; the average is unchanged then.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> average = ModelEmaV3(model, decay=0.75)
        >>> model.bias.data += 1.0
        >>> before = average.module.bias.clone()
        >>> average.update(model, step=10)
        >>> torch.allclose(average.module.bias, before + 0.25)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ):
        super().__init__()
        check_module(_OP, "model", model)
        first = next(model.parameters(), None)
        if first is None:
            raise ValueError(f"{_OP}: model must have at least one parameter")
        for name, value in (("decay", decay), ("min_decay", min_decay)):
            check_share(_OP, name, value)
        self.decay, self.min_decay = decay, min_decay
        self.update_after_step = update_after_step
        self.use_warmup, self.warmup_gamma, self.warmup_power = use_warmup, warmup_gamma, warmup_power
        self.device, self.dtype = device, dtype
        self.stochastic_rounding, self.stochastic_rounding_seed = stochastic_rounding, stochastic_rounding_seed
        self.exclude_buffers = exclude_buffers
        elsewhere = device is not None and device != first.device
        self.foreach = foreach and not elsewhere
        self.module = deepcopy(model).eval()
        if elsewhere or dtype is not None:
            self.module.to(device=device if elsewhere else None, dtype=dtype)
        self._seeds = random.Random(
            stochastic_rounding_seed
        )  # of its own, as in timm: equal on all ranks, absent from the state dict

    def get_decay(self, step: int | None = None) -> float:
        """Share that is kept at a step; ``decay`` without one."""
        if step is None:
            return self.decay
        step = step - self.update_after_step - 1
        if step <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        warm = 1 - (1 + step / self.warmup_gamma) ** -self.warmup_power
        return max(min(warm, self.decay), self.min_decay)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Moves the average towards the model."""
        weight = 1.0 - self.get_decay(step)
        averaged, values, copied, sources = self._pairs(model)
        pairs = list(zip(averaged, values, strict=True))
        rounded = [pair for pair in pairs if self.stochastic_rounding and pair[0].dtype == torch.bfloat16]
        plain = [pair for pair in pairs if not (self.stochastic_rounding and pair[0].dtype == torch.bfloat16)]
        if rounded:
            self._average_stochastically(*_unzip(rounded), weight)
        if plain:
            self._average(*_unzip(plain), weight)
        for ours, theirs in zip(copied, sources, strict=True):
            ours.copy_(theirs)

    @torch.no_grad()
    def set(self, model: nn.Module) -> None:
        """Copies the model's state dict."""
        check_module(_OP, "model", model)
        for ours, theirs in zip(*_matched("tensor", _state(self.module), _state(model)), strict=True):
            ours.copy_(theirs)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """(averages, the model's values) and (copies, the model's values), checked."""
        check_module(_OP, "model", model)
        if self.exclude_buffers:
            averaged, values = _matched("parameter", list(self.module.named_parameters()), list(model.named_parameters()))
            return averaged, values, *_matched("buffer", list(self.module.named_buffers()), list(model.named_buffers()))
        pairs = list(zip(*_matched("tensor", _state(self.module), _state(model)), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        return *_unzip(floating), *_unzip([pair for pair in pairs if not pair[0].is_floating_point()])

    def _average_stochastically(self, averaged: list[Tensor], values: list[Tensor], weight: float) -> None:
        values = [v.float() if v.dtype == torch.float64 else v for v in values]
        values = [v.to(e.device) for e, v in zip(averaged, values, strict=True)]
        seed = self._seeds.getrandbits(63)
        average_lists(_OP, _NAMES, averaged, values, 1.0 - weight, "mul_add", rounding="stochastic", seed=seed)

    def _average(self, averaged: list[Tensor], values: list[Tensor], weight: float) -> None:
        """timm's arithmetic, bit for bit; ``1 - weight`` is what its product takes, and gives ``weight`` back exactly."""
        if not self.foreach:
            values = [v.to(device=e.device, dtype=e.dtype) for e, v in zip(averaged, values, strict=True)]
        if all(e.dtype == v.dtype for e, v in zip(averaged, values, strict=True)):
            average_lists(_OP, _NAMES, averaged, values, 1.0 - weight, "lerp")
        elif all(e.dtype == torch.float32 and v.dtype != torch.float64 for e, v in zip(averaged, values, strict=True)):
            average_lists(_OP, _NAMES, averaged, values, 1.0 - weight, "mul_add")
        else:  # timm rounds to the dtype of the average between product and sum, the op only once
            torch._foreach_mul_(averaged, 1.0 - weight)
            torch._foreach_add_(averaged, values, alpha=weight)


def _matched(what: str, ours: list[tuple[str, Tensor]], theirs: list[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of two lists with names, which must have equal shapes in their order."""
    check_match(_OP, what, theirs, ours)
    return [t for _, t in ours], [t for _, t in theirs]


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of a state dict in order, a tied one at its first name only."""
    first = {id(t): (name, t) for name, t in reversed(module.state_dict(keep_vars=True).items()) if isinstance(t, Tensor)}
    return list(reversed(first.values()))


def _unzip(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [a for a, _ in pairs], [b for _, b in pairs]
