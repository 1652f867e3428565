"""LARS of lightly and solo-learn, made from ``lars_``: their arguments in their order, their group options and their state.

    d = g + wd p;  q = eta |p| / (|g| + wd |p| + eps);  p <- p - lr mu
    mu <- q d at the first step, then m mu + (1 - dampening) q d

Both libraries add the decay and apply q to the same tensors, but not to a tensor whose norm is 0 or whose gradient's norm is 0.
lightly leaves out groups without weight decay; solo-learn leaves out tensors of one dimension, with ``exclude_bias_n_norm``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastssl.checks import check_number
from fastssl.ops._steps import step_scalar
from fastssl.ops.lars import check_rates, lars_
from fastssl.optim._common import ListOptimizer, Slots


class Lars(ListOptimizer):
    """The optimizer that both drop-ins derive from. ``_trust``: the library's name of eta; ``_options``: of its group options."""

    _trust: str = "trust_coefficient"
    _options: tuple[str, ...] = ("lr", "momentum", "dampening", "nesterov", "trust_coefficient", "eps")

    def __init__(self, params: ParamsT, defaults: dict[str, Any]):
        super().__init__(params, defaults, {})

    def _check_group(self, group: dict) -> None:
        check_rates("LARS", group["momentum"], group[self._trust], group["eps"], "larc", group["nesterov"], False)
        for name in ("dampening", "weight_decay"):
            check_number("LARS", name, group[name], 0.0 if name == "weight_decay" else -float("inf"))
        if group["nesterov"] and group["dampening"] != 0:
            raise ValueError(f"LARS: nesterov needs a dampening of 0, got {group['dampening']}")
        step_scalar("LARS", "lr", group["lr"], getattr(group["lr"], "device", torch.device("cpu")), 0.0)

    def _rule(self, p: Tensor, group: dict) -> tuple[float, bool]:
        """(weight decay of a tensor, whether its rate is adapted)."""
        return group["weight_decay"], group["weight_decay"] != 0

    def _update(self, options: dict, slots: Slots) -> None:
        params, grads = [p for p, _ in slots], [p.grad for p, _ in slots if p.grad is not None]
        decays, adapts = zip(*(self._rule(p, group) for p, group in slots), strict=True)
        call = {"form": "larc", "weight_decay": list(decays), "adapt": list(adapts), "eps": options["eps"]}
        call |= {"trust_coefficient": options[self._trust], "clip": options.get("clip_lr", False)}
        if options["momentum"] != 0 and options["dampening"] == 0:
            momenta = [self.state[p].get("momentum_buffer") for p in params]
            momenta = [torch.zeros_like(p) if m is None else m for p, m in zip(params, momenta, strict=True)]
            lars_(params, grads, momenta, lr=options["lr"], momentum=options["momentum"], nesterov=options["nesterov"], **call)
            for p, momentum in zip(params, momenta, strict=True):
                self.state[p]["momentum_buffer"] = momentum
            return
        if options["momentum"] == 0:  # no state, as in both libraries
            lars_(params, grads, [torch.zeros_like(p) for p in params], lr=options["lr"], momentum=0.0, **call)
            return
        self._dampened(params, grads, options, call)

    def _dampened(self, params: list[Tensor], grads: list[Tensor], options: dict, call: dict) -> None:
        """A step with dampening: one launch on copies makes q d, then the momentum is updated tensor by tensor."""
        steps = [torch.zeros_like(p) for p in params]
        clip = call.pop("clip")
        lars_([p.clone() for p in params], grads, steps, lr=options["lr"], momentum=0.0, clip=clip, **call)
        for p, step in zip(params, steps, strict=True):
            state = self.state[p]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = step
            else:
                state["momentum_buffer"].mul_(options["momentum"]).add_(step, alpha=1 - options["dampening"])
            p.sub_(state["momentum_buffer"] * options["lr"])
