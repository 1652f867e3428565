"""What the optimizers share: one call of an op for all parameter groups whose options agree, and copies of the parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastssl.ops._steps import EMA_MOMENTUM, Copies, check_copies, step_scalar
from fastssl.ops.ema import share, update_averages

Slots = list[tuple[Tensor, dict]]  # parameters with their groups
#: Options of torch's optimizers: those that choose among implementations of the same step, and those that ask for another step.
SAME_STEP, OTHER_STEP = ("foreach", "fused"), ("amsgrad", "maximize", "differentiable")


def check_torch_options(op: str, group: dict) -> None:
    """Bools or None; what would change the step is refused."""
    for name in (*SAME_STEP, *OTHER_STEP, "capturable"):
        if not isinstance(group.get(name), bool | None):
            raise TypeError(f"{op}: {name} must be True or False, got {type(group[name]).__name__}")
    for name in OTHER_STEP:
        if group.get(name):
            raise NotImplementedError(f"{op}: {name} is not supported; it must be False, got True")


def check_rate(op: str, lr: float | Tensor) -> None:
    """Refuses a learning rate that is no number of at least 0 and no one-element float tensor."""
    step_scalar(op, "lr", lr, lr.device if isinstance(lr, Tensor) else torch.device("cpu"), 0.0)


class ListOptimizer(torch.optim.Optimizer):
    """A torch optimizer whose step is one call of an op on lists. Subclasses say which group options must agree within a call
    (``_options``), check a group (``_check_group``), and make a call (``_update``)."""

    _options: tuple[str, ...]

    def __init__(self, params: ParamsT, defaults: dict, copies: Copies):
        self._copies: dict[str, dict[Tensor, Tensor]] = {}
        self._own = tuple(defaults)  # torch adds defaults of its own on the way
        try:
            super().__init__(params, defaults)
        except (TypeError, ValueError) as error:
            if str(error).startswith(self._name):
                raise
            raise type(error)(f"{self._name}: params must be parameters or groups of them: {error}") from error
        flat = [p for group in self.param_groups for p in group["params"]]
        self.ema_momentum = copies.get("ema_momentum", EMA_MOMENTUM)
        share(self._name, "ema_momentum", self.ema_momentum, flat[0].device)
        check_copies(self._name, copies)
        lists = {"ema": copies.get("ema"), "shadow": copies.get("shadow"), "ema_shadow": copies.get("ema_shadow")}
        for name, given in lists.items():
            if given is not None:
                self._copies[name] = self._aligned(name, flat, given)

    def _check_group(self, group: dict) -> None:
        raise NotImplementedError

    def _update(self, options: dict, slots: Slots) -> None:
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _aligned(self, name: str, params: list[Tensor], copies: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        if isinstance(copies, Tensor) or not isinstance(copies, Iterable):
            raise TypeError(f"{self._name}: {name} must be a list of tensors, one for each parameter, got {type(copies).__name__}")
        copies = list(copies)
        if len(copies) != len(params):
            raise ValueError(f"{self._name}: {name} must hold {len(params)} tensors, one for each parameter, got {len(copies)}")
        for i, (copy, p) in enumerate(zip(copies, params, strict=True)):
            if not isinstance(copy, Tensor):
                raise TypeError(f"{self._name}: {name}[{i}] must be a tensor, got {type(copy).__name__}")
            if copy.shape != p.shape:
                shapes = f"{tuple(p.shape)}, got {tuple(copy.shape)}"
                raise ValueError(f"{self._name}: {name}[{i}] must have the shape of its parameter, {shapes}")
        return dict(zip(params, copies, strict=True))

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; refused where averages or shadows are kept, which the new parameters would lack."""
        if self._copies:
            raise ValueError(f"{self._name}: no group can be added to an optimizer with {', '.join(self._copies)}; build a new one")
        if isinstance(param_group, dict):
            self._check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_copies": self._copies, "_own": self._own, "ema_momentum": self.ema_momentum}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state dict of another library's optimizer has options of its own
            for name in self._own:
                group.setdefault(name, self.defaults[name])
            self._check_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        A parameter without gradient stays as it is; its average is updated all the same.

        Args:
            closure: Evaluates the model and returns the loss; it is called before the step.

        Returns:
            What ``closure`` returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._check_group(group)
        calls, idle = self._sort_parameters()
        for options, slots in calls:
            self._update(options, slots)
        self._average_idle(idle)
        return loss

    def _sort_parameters(self) -> tuple[list[tuple[dict, Slots]], list[Tensor]]:
        """The parameters with gradients by device and options, and those without."""
        calls: dict[tuple, tuple[dict, Slots]] = {}
        idle = []
        for group in self.param_groups:
            options = {name: group[name] for name in self._options}
            key = tuple(id(value) if isinstance(value, Tensor) else str(value) for value in options.values())
            here, slots = None, []
            for p in group["params"]:
                grad = p.grad
                if grad is None:
                    idle.append(p)
                    continue
                if grad.layout != torch.strided:
                    raise TypeError(f"{self._name}: gradients must be dense tensors, got {grad.layout}")
                if p.device != here:
                    here = p.device
                    slots = calls.setdefault((here, key), (options, []))[1]
                slots.append((p, group))
        return list(calls.values()), idle

    def _copies_of(self, slots: Slots) -> Copies:
        """The copies of these parameters that the optimizer keeps."""

        def kept(name: str) -> list[Tensor] | None:
            return [self._copies[name][p] for p, _ in slots] if name in self._copies else None

        return Copies(ema=kept("ema"), ema_momentum=self.ema_momentum, shadow=kept("shadow"), ema_shadow=kept("ema_shadow"))

    def _average_idle(self, params: list[Tensor]) -> None:
        if "ema" not in self._copies:
            return
        for device in {p.device for p in params}:
            here = [p for p in params if p.device == device]
            lists = {name: [self._copies[name][p] for p in here] for name in self._copies if name != "shadow"}
            shadow = lists.get("ema_shadow")
            update_averages(
                self._name, lists["ema"], here, self.ema_momentum, shadow=shadow, names=("ema", "params", "ema_momentum")
            )
