"""Momentum encoders around ``ema_update_``: which tensors of two modules are averaged, copied or left alone."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import FLOATS, check_choice, is_whole
from fastssl.ops._lists import as_list
from fastssl.ops.ema import share

from ._copies import copy_of, rename_wrapped, unwrapped
from ._masters import Masters, master_of, plant
from ._tensors import (
    HALF,
    Launch,
    Tensors,
    Update,
    check_match,
    check_module,
    check_teacher,
    dtypes_of,
    find,
    find_groups,
    fsdp_module,
)


@dataclass
class _Plan:
    """What an update of one model needs to know, while teacher, model, dtypes and devices are those that it was made for."""

    teacher: Tensors
    student: Callable[[], Tensors | None]
    dtypes: list[tuple[torch.dtype, torch.device]]
    groups: list[list[int]]
    copied: list[int]
    masters: dict[int, Tensor]


class EMA(nn.Module):
    """The moving average of a model: the teacher of MoCo, BYOL and DINO, or the weights to evaluate (Tarvainen and Valpola 2017).

    After ``ema = EMA(model, 0.996)`` call ``ema.update(model)`` after each step of the optimizer; ``ema(x)`` calls the teacher
    ``ema.module``. The teacher is a deep copy of the model without gradients, and each of its modules is in the mode (train or
    eval) in which it was copied. Parameters are paired in the order of ``parameters()``, tied ones once; frozen parameters and
    those without a gradient move too; there is one launch for each device. Changes of the model's tensors (another head,
    ``.to(...)``, a loaded checkpoint) are noticed. The model is not kept alive.

    Of a wrapped model (``torch.compile``, ``DistributedDataParallel``, ``DataParallel``) the teacher is a copy of the model
    inside, and the state dict has the names of the model inside. ``update`` takes the wrapped model or the model inside, states
    of EMAs of wrapped models load, and ``ema.module.compile()`` compiles the teacher in place.

    A half-precision teacher (because of ``dtype``, or because the model has half precision) would round nearly every step away.
    With ``rounding="nearest"`` its float32 values are averaged, which takes 4 more bytes an element, and are written to the
    teacher, rounded, in the same pass; the state dict holds them under ``master.``. What others write into such a teacher in
    place, or put in its place, is its new average. Writes through ``.data`` cannot be seen, so use ``copy_from``,
    ``load_state_dict`` or ``torch.no_grad()``. With ``rounding="stochastic"`` the half-precision values themselves are right on
    average.

    Args:
        model: A module with at least one float parameter. With ``fully_shard`` make the EMA first, then shard both ``ema.module``
            and the model.
        momentum: The share that is kept at an update, in [0, 1]: a number, or a one-element float tensor, which a captured CUDA
            graph reads anew at each replay; a float64 tensor keeps ``1 - momentum`` exact. ``ema.momentum = ...`` sets it later.
        buffers: "copy": buffers become the model's. "ema": buffers of float dtype are averaged, the others copied. "skip":
            buffers are left alone, as in MoCo and BYOL, whose teachers run their own batch statistics.
        order: "lerp" gives the bits of torch's AveragedModel, "mul_add" those of MoCo, DINO and lightly; see ``ema_update_``.
        dtype: None, torch.float32, torch.bfloat16 or torch.float16: the dtype of the floating tensors of ``module``.
        rounding: "nearest" or "stochastic".
        seed: The seed of stochastic rounding, in [0, 2^31). The state dict has the number of updates so far as ``steps``.
        teacher: The module to average in, in place of a copy of the model. It must have equal parameters and, unless ``buffers``
            is "skip", equal buffers, and must share none of them with the model. It keeps its values and its mode, and needs no
            gradient from then on. It is for models that cannot be copied, and for teachers whose other modules differ, as DINO's
            do in drop path.

    Attributes:
        module: The teacher.
        momentum: The share that ``update`` keeps.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> import torch
        >>> from fastssl.momentum import EMA
        >>> model = torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> ema = EMA(model, momentum=0.75)
        >>> _ = torch.nn.init.ones_(model.weight)  # in place of a step of an optimizer
        >>> ema.update(model)
        >>> ema.module.weight.item()
        0.25
    """

    _half: dict[str, Tensor]  # the teacher's half-precision tensors that have masters
    _versions: list[int]  # theirs, after the last update
    _plan: _Plan | None

    def __init__(
        self,
        model: nn.Module,
        momentum: float | Tensor = 0.999,
        *,
        buffers: str = "copy",
        order: str = "lerp",
        dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        teacher: nn.Module | None = None,
    ):
        super().__init__()
        check_module("EMA", "model", model)
        if teacher is not None:
            check_module("EMA", "teacher", teacher)
        check_choice("EMA", "buffers", buffers, ("copy", "ema", "skip"))
        check_choice("EMA", "order", order, ("lerp", "mul_add"))
        check_choice("EMA", "rounding", rounding, ("nearest", "stochastic"))
        if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype in (torch.float32, *HALF))):
            got = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
            raise TypeError(f"EMA: dtype must be None, torch.float32, torch.bfloat16 or torch.float16, got {got}")
        if not is_whole(seed) or not 0 <= seed < 2**31:
            raise ValueError(f"EMA: seed must be an integer in [0, 2^31), got {seed!r}")
        for name, module in (("model", model), *([] if teacher is None else [("teacher", teacher)])):
            if any(isinstance(m, fsdp_module()) for m in module.modules()):
                how = "got one after fully_shard; make the EMA first, then shard both"
                raise ValueError(f"EMA: {name} must not be sharded yet, {how}")
        named = list(model.named_parameters())
        check_match("EMA", "parameter", named, named if teacher is None else list(teacher.named_parameters()))
        if teacher is not None:
            check_teacher(model, teacher, buffers)
        anchor = next((p for _, p in named if p.dtype in FLOATS), None)
        if anchor is None:
            raise ValueError("EMA: model must have at least one float parameter, got none")
        if dtype is not None and any(t.dtype == torch.float64 for t in (*model.parameters(), *model.buffers())):
            raise TypeError(f"EMA: a model with float64 tensors stays as it is; dtype must be None, got {dtype}")
        self.momentum = momentum
        self.buffer_rule, self.order, self.rounding, self.seed = buffers, order, rounding, seed
        with torch.inference_mode(False):  # what is made under it could not be written later
            self.module = (copy_of(model) if teacher is None else unwrapped(teacher)).requires_grad_(False)
        self.training = self.module.training
        self.master = Masters()
        self.steps: Tensor | None
        with torch.inference_mode(False):
            steps = torch.zeros((), dtype=torch.int64, device=anchor.device) if rounding == "stochastic" else None
        self.register_buffer("steps", steps)
        self._forget()
        if dtype is None:
            self._match_masters({})
        else:
            self._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
        self.register_load_state_dict_post_hook(_trust_masters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher returns for these arguments."""
        return self.module(*args, **kwargs)

    @property
    def momentum(self) -> float | Tensor:
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | Tensor) -> None:
        share("EMA", "momentum", value, value.device if isinstance(value, Tensor) else torch.device("cpu"))
        self._momentum = value

    @torch.no_grad()
    def update(self, model: nn.Module, momentum: float | Tensor | None = None) -> None:
        """Moves the teacher towards the model.

        Args:
            model: The model that the EMA was made of, or one of equal parameters (and buffers, unless ``buffers`` is "skip").
            momentum: The share that is kept this once, in place of ``ema.momentum``: a number in [0, 1] or a one-element float
                tensor.

        Raises:
            TypeError, ValueError: An argument is wrong, or a tensor of the two differs; the message names it. Nothing has been
                changed then.
        """
        op = "EMA.update"
        check_module(op, "model", model)
        mine, theirs, plan = self._paired(op, model)
        launches: list[Launch] = []
        for group in plan.groups:
            teacher, params = [mine[i] for i in group], [theirs[i] for i in group]
            if group[0] in plan.masters:
                launches.append(([plan.masters[i] for i in group], params, teacher))
            else:
                launches.append((teacher, params, None))
        update = Update(launches, ([mine[i] for i in plan.copied], [theirs[i] for i in plan.copied]))
        seed = 0 if self.steps is None else self.steps + (self.seed << 32)
        names = ("teacher", "model", "momentum")
        # Not self._momentum: torch 2.11 compiles that to the value from before an assignment in the same graph.
        update.run(op, names, self.momentum if momentum is None else momentum, self.order, self.rounding, seed)
        if self.steps is not None:
            self.steps.add_(1)
        if torch.compiler.is_compiling():
            self._forget()
        else:
            self._versions = [t._version for t in self._half.values()]

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Makes the teacher equal to the model: parameters and all buffers, whatever the rule for buffers.

        Args:
            model: As in ``update``; its buffers must match too.

        Raises:
            TypeError, ValueError: As ``update``.
        """
        op = "EMA.copy_from"
        check_module(op, "model", model)
        mine, theirs = find(self.module), find(model)
        self._check(op, model, True)
        self._match_masters({})
        torch._foreach_copy_(as_list(op, "", mine.params + mine.buffers), as_list(op, "", theirs.params + theirs.buffers))
        sources = dict(zip(self._names(True), theirs.params + theirs.buffers, strict=True))
        for name, master in self.master.named_buffers():
            master.copy_(sources[name])
        self._versions = [t._version for t in self._half.values()]

    def _forget(self) -> None:
        """Takes what the teacher and its masters hold now as belonging together, whoever wrote it."""
        self._half, self._versions, self._plan = {}, [], None

    def _paired(self, op: str, model: nn.Module) -> tuple[list[Tensor], list[Tensor], _Plan]:
        """The teacher's tensors, the model's tensors, and the plan for the two."""
        compiling, buffers = torch.compiler.is_compiling(), self.buffer_rule != "skip"
        if compiling:
            mine: list[Tensor] = [*self.module.parameters(), *(self.module.buffers() if buffers else ())]
            theirs: list[Tensor] = [*model.parameters(), *(model.buffers() if buffers else ())]
            return mine, theirs, self._new_plan(op, model, mine, None, None)
        teacher, student = find(self.module), find(model)
        mine = teacher.params + teacher.buffers if buffers else teacher.params
        theirs = student.params + student.buffers if buffers else student.params
        plan = self._plan
        if (
            plan is None
            or plan.teacher is not teacher
            or plan.student() is not student
            or plan.dtypes != dtypes_of(mine)
            or self._versions != [t._version for t in self._half.values()]
        ):
            plan = self._plan = self._new_plan(op, model, mine, teacher, weakref.ref(student))
        return mine, theirs, plan

    def _new_plan(self, op: str, model: nn.Module, mine: list[Tensor], teacher, student) -> _Plan:
        self._check(op, model, self.buffer_rule != "skip")
        if not torch.compiler.is_compiling():
            self._match_masters({})
        dtypes = dtypes_of(mine)
        averaged = len(mine) if self.buffer_rule == "ema" else len(list(self.module.parameters()))
        groups, copied = find_groups(dtypes, self.rounding == "nearest", averaged)
        by_name = dict(self.master.named_buffers())
        masters = {i: by_name[name] for i, name in enumerate(self._names(self.buffer_rule == "ema")) if name in by_name}
        return _Plan(teacher, student, dtypes, groups, copied, masters)

    def _names(self, buffers: bool) -> list[str]:
        names = [name for name, _ in self.module.named_parameters()]
        return names + [name for name, _ in self.module.named_buffers()] if buffers else names

    def _check(self, op: str, model: nn.Module, buffers: bool) -> None:
        check_match(op, "parameter", list(model.named_parameters()), list(self.module.named_parameters()))
        if buffers:
            check_match(op, "buffer", list(model.named_buffers()), list(self.module.named_buffers()))

    @torch.no_grad()
    @torch.inference_mode(False)
    def _match_masters(self, wide: dict[str, Tensor]) -> None:
        """Gives masters to exactly the half-precision tensors. ``wide`` has values from before a rounding, by name.

        A tensor of the teacher that someone else has replaced or written since our last update is the new value of its master.
        """
        old, masters, half = dict(self.master.named_buffers()), {}, {}
        seen = {name: (t, version) for (name, t), version in zip(self._half.items(), self._versions, strict=True)}
        named = dict(self.module.named_parameters()) | (dict(self.module.named_buffers()) if self.buffer_rule == "ema" else {})
        for name, t in named.items():
            known, version = seen.get(name, (t, t._version))
            ours = known is t and version == t._version
            if t.dtype in HALF and self.rounding == "nearest":
                half[name] = t
                masters[name] = master_of(t, old.get(name), ours, wide.get(name, t))
            elif name in old and ours and old[name].shape == t.shape:
                t.copy_(old[name])
        if masters.keys() != old.keys() or any(masters[name] is not old[name] for name in old):
            self.master = plant(masters)
        self._half, self._versions = half, [t._version for t in half.values()]

    def _apply(self, fn, recurse=True):
        wide = {name: t.detach() for name, t in (*self.module.named_parameters(), *self.module.named_buffers())}
        with torch.inference_mode(False):
            super()._apply(fn, recurse)
        self._forget()
        self._match_masters({name: t for name, t in wide.items() if t.dtype not in HALF})
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Checkpoints in another precision or rounding fit: masters are the float32 values of a half-precision teacher."""
        for tree, own in (("module", self.module), ("master", self.master)):
            rename_wrapped(state_dict, f"{prefix}{tree}.", own.state_dict().keys())
        masters = {f"{prefix}master.{name}" for name, _ in self.master.named_buffers()}
        for key in [key for key in state_dict if key.startswith(f"{prefix}master.") and key not in masters]:
            state_dict[f"{prefix}module.{key.removeprefix(f'{prefix}master.')}"] = state_dict.pop(key)
        for key in masters - state_dict.keys():
            source = f"{prefix}module.{key.removeprefix(f'{prefix}master.')}"
            if source in state_dict:
                state_dict[key] = state_dict[source].float()
        if self.steps is None:
            state_dict.pop(f"{prefix}steps", None)
        else:
            state_dict.setdefault(f"{prefix}steps", self.steps)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_plan": None, "_half": {}, "_versions": []}


def _trust_masters(ema: EMA, _) -> None:
    """Runs after loading: teacher and masters came together."""
    ema._forget()
    ema._match_masters({})
