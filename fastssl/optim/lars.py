"""LARS as a torch optimizer: all tensors and parameter groups in one call of ``lars_``."""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastssl.checks import check_choice, check_number
from fastssl.ops._steps import Copies, for_each_tensor
from fastssl.ops.lars import FORMS, LarsRule, check_rates, step_lars

from ._common import ListOptimizer, Slots, check_rate, check_torch_options


class LARS(ListOptimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017), in the three forms that the field uses.

        moco_v3   d = g + wd p;  q = eta |p| / |d|;                     mu <- m mu + q d;        p <- p - lr mu
        larc      d = g + wd p;  q = eta |p| / (|g| + wd |p| + eps);    mu <- m mu + q d;        p <- p - lr mu
        paper     d = g + wd p;  q as in larc;                          mu <- m mu + lr q d;     p <- p - mu

    All tensors and parameter groups of a device take one call of ``lars_``. All arguments but ``params`` and ``lr`` are given by
    name, because MoCo v3, timm, lightly and torch each have another order.

    Args:
        params: Parameters or groups of them, float32, bfloat16, float16 or float64. Groups may override all arguments but the
            last four. The momentum has the dtype of its parameter. Of DTensors only replicated ones are taken.
        lr: A number of at least 0, or a one-element float tensor; a captured CUDA graph reads one on the parameters' device anew
            at each replay.
        momentum: m, in [0, 1).
        weight_decay: wd, at least 0.
        trust_coefficient: eta, at least 0.
        eps: The eps of "larc" and "paper", at least 0.
        form: "moco_v3" (MoCo v3, Barlow Twins, VICReg, DINO), "larc" (apex, timm, lightly, solo-learn) or "paper" (algorithm 1,
            Paddle, ROCm's FusedLARS).
        nesterov: Whether to use Nesterov's momentum; needs momentum above 0.
        clip: LARC's min(q / lr, 1); needs form "larc".
        dampening: Only 0, the value of all published forms; other libraries have the argument.
        adapt: None is the form's own rule: "moco_v3" adapts and decays tensors with more than one dimension, the others neither;
            "larc" and "paper" adapt the groups whose weight decay is not 0. True or False holds for all tensors of the group,
            which are decayed by its weight decay either way.

    Keyword Args:
        ema: Averages of the parameters, tensors aligned with them across the groups. They are updated in the same pass, also
            those of parameters without gradient. Neither they nor the shadows are part of the state dict.
        ema_momentum: The share of ``ema`` that is kept, in [0, 1], 0.999 by default; the attribute may be set before each step.
        shadow: Tensors that receive the new parameters in their own dtype, such as the bfloat16 model whose float32 masters are
            optimized.
        ema_shadow: Tensors that receive the new ``ema``; needs ``ema``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: ``dampening`` is not 0, or a parameter is a sharded DTensor, whose norm would be that of a shard.

    Examples:
        >>> import torch
        >>> from fastssl.optim import LARS
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = LARS([weight], lr=0.5, trust_coefficient=0.25)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> [round(each, 4) for each in weight[0].tolist()]
        [0.875, 0.875]
    """

    _options = ("lr", "momentum", "trust_coefficient", "eps", "form", "nesterov", "clip")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        form: str = "moco_v3",
        nesterov: bool = False,
        clip: bool = False,
        dampening: float = 0.0,
        adapt: bool | None = None,
        **copies: Unpack[Copies],
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "form": form,
            "nesterov": nesterov,
            "clip": clip,
            "dampening": dampening,
            "adapt": adapt,
        }
        super().__init__(params, defaults, copies)

    def _check_group(self, group: dict) -> None:
        check_choice("LARS", "form", group["form"], FORMS)
        check_choice("LARS", "adapt", group["adapt"], (None, True, False))
        check_torch_options("LARS", group)
        check_number("LARS", "dampening", group["dampening"], 0.0)
        if group["dampening"]:
            raise NotImplementedError(f"LARS: dampening is not supported; it must be 0, got {group['dampening']}")
        check_rates("LARS", *_shared(group))
        for_each_tensor("LARS", "weight_decay", group["weight_decay"], 1, float)
        check_rate("LARS", group["lr"])

    def _update(self, options: dict, slots: Slots) -> None:
        momenta, decays, adapts = [], [], []
        rules = {}
        for p, group in slots:
            state = self.state[p]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(p)
            momenta.append(state["momentum_buffer"])
            key = id(group), p.dim() > 1
            if key not in rules:
                rules[key] = _rule(p, group)
            decay, adapt = rules[key]
            decays.append(decay)
            adapts.append(adapt)
        lists = ([p for p, _ in slots], [p.grad for p, _ in slots], momenta)
        step_lars("LARS", lists, self._copies_of(slots), options["lr"], decays, adapts, _shared(options))


def _shared(options: dict) -> LarsRule:
    return LarsRule(**{name: options[name] for name in LarsRule._fields})


def _rule(p: Tensor, group: dict) -> tuple[float, bool]:
    """Weight decay of a tensor, and whether its rate is adapted."""
    decay, adapt = group["weight_decay"], group["adapt"]
    if adapt is None and group["form"] == "moco_v3":
        return (decay, True) if p.dim() > 1 else (0.0, False)
    return decay, decay != 0 if adapt is None else adapt
