"""AdamW as a torch optimizer: all tensors and parameter groups in one call of ``adamw_``."""

from collections import Counter
from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastssl.ops._steps import Copies, for_each_tensor
from fastssl.ops.adamw import check_rates, step_adamw

from ._common import ListOptimizer, Slots, check_rate, check_torch_options


class AdamW(ListOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), with the arithmetic and the state of ``torch.optim.AdamW``.

    State dicts go both ways between the two. All tensors and parameter groups of a device take one call of ``adamw_``.

    Args:
        params: Parameters or groups of them, float32, bfloat16, float16 or float64. Groups may override lr, betas, eps and
            weight_decay. The state has the dtype of its parameter.
        lr: A number of at least 0, or a one-element float tensor.
        betas: (beta1, beta2), both in [0, 1).
        eps: What is added to the root, at least 0.
        weight_decay: The weight decay, at least 0.
        amsgrad: An option of torch's optimizer; only False.
        maximize: An option of torch's optimizer; only False.
        foreach: An option of torch's optimizer that changes nothing here, where the step is one call anyway.
        capturable: Whether to count steps on the device, so that a captured CUDA graph moves on at each replay; it follows ``lr``
            on the device too. The parameters that have gradients must then stay the same.
        differentiable: An option of torch's optimizer; only False.
        fused: An option of torch's optimizer that changes nothing here.

    Keyword Args:
        ema: Averages of the parameters, tensors aligned with them across the groups. They are updated in the same pass, also
            those of parameters without gradient. Neither they nor the shadows are part of the state dict.
        ema_momentum: The share of ``ema`` that is kept, in [0, 1], 0.999 by default; the attribute may be set before each step.
        shadow: Tensors that receive the new parameters in their own dtype, such as the bfloat16 model whose float32 masters are
            optimized.
        ema_shadow: Tensors that receive the new ``ema``; needs ``ema``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: ``amsgrad``, ``maximize`` or ``differentiable`` is set.

    Examples:
        >>> import torch
        >>> from fastssl.optim import AdamW
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.0)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> [round(each, 4) for each in weight.tolist()]
        [0.5, 0.5]
    """

    _options = ("lr", "betas", "eps", "capturable")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **copies: Unpack[Copies],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, copies)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._share_steps()

    def state_dict(self) -> dict:
        """As torch's, with a counter of its own for each parameter."""
        whole = super().state_dict()
        whole["state"] = {index: state | {"step": state["step"].clone()} for index, state in whole["state"].items() if state}
        return whole

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's; a state that no AdamW can have left is refused, and nothing is loaded."""
        for index, state in state_dict["state"].items():
            if not state:
                continue
            if missing := {"step", "exp_avg", "exp_avg_sq"} - state.keys():
                raise ValueError(f"AdamW: state_dict must hold {', '.join(sorted(missing))} of parameter {index}")
            if not torch.as_tensor(state["step"]).item() >= 0:  # NaN too
                raise ValueError(f"AdamW: state_dict must hold a step of at least 0, got {state['step']} of parameter {index}")
        super().load_state_dict(state_dict)

    def _check_group(self, group: dict) -> None:
        check_rates("AdamW", group["betas"], group["eps"])
        for_each_tensor("AdamW", "weight_decay", group["weight_decay"], 1, float)
        check_rate("AdamW", group["lr"])
        check_torch_options("AdamW", group)

    def _share_steps(self) -> None:
        """One counter for all parameters of a device that have taken as many steps: they make one call."""
        counters: dict[tuple, Tensor] = {}
        for state in self.state.values():
            if state:
                step = torch.as_tensor(state["step"], dtype=torch.float32)
                state["step"] = counters.setdefault((step.device, step.item()), step)

    def _update(self, options: dict, slots: Slots) -> None:
        options = dict(options)
        capturable = options.pop("capturable")
        for step, here in self._by_step(slots, capturable):
            params, grads = [p for p, _ in here], [p.grad for p, _ in here]
            first, second = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
            decays = [group["weight_decay"] for _, group in here]
            step.add_(1)
            try:
                lists = (params, grads, first, second)
                step_adamw("AdamW", lists, self._copies_of(here), step, weight_decay=decays, **options)
            except Exception:
                step.sub_(1)
                raise

    def _by_step(self, slots: Slots, capturable: bool) -> Iterator[tuple[Tensor, Slots]]:
        """The counters of the parameters, with those that each counts for and no others."""
        fresh = None
        calls: dict[int, tuple[Tensor, Slots]] = {}
        for slot in slots:
            p, state = slot[0], self.state[slot[0]]
            if not state:
                if fresh is None:
                    fresh = torch.zeros((), dtype=torch.float32, device=p.device if capturable else "cpu")
                state["step"], state["exp_avg"], state["exp_avg_sq"] = fresh, torch.zeros_like(p), torch.zeros_like(p)
            calls.setdefault(id(state["step"]), (state["step"], []))[1].append(slot)
        holders = Counter(id(state["step"]) for state in self.state.values() if state)
        for key, (step, here) in calls.items():
            if holders[key] > len(here):
                step = step.clone()
                for p, _ in here:
                    self.state[p]["step"] = step
            yield step, here
