"""What the drop-ins share: checks of numbers, and parameters of two modules that are averaged or copied."""

import torch
from torch import Tensor, nn

from fastssl import checks
from fastssl.momentum._tensors import average_lists, check_match, check_module, find

SHARE = "the share that is kept"  # these libraries have many names for it


def check_share(op: str, name: str, value: float) -> None:
    """Raises TypeError or ValueError unless ``value`` is a number in [0, 1]."""
    checks.check_share(op, name, value, f", {SHARE}")


def parameter_pairs(op: str, names: tuple[str, str], student: nn.Module, teacher: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of both modules, in their order. Wrappers such as DistributedDataParallel keep it, and need no unwrapping.

    Raises TypeError or ValueError where these are no modules, or their parameters differ in number or shape.
    """
    params: list[Tensor]
    averages: list[Tensor]
    for name, module in zip(names, (student, teacher), strict=True):
        check_module(op, name, module)
    if torch.compiler.is_compiling():
        params, averages = list(student.parameters()), list(teacher.parameters())
    else:
        params, averages = find(student).params, find(teacher).params
    try:
        agree = [p.shape for p in params] == [e.shape for e in averages]
    except RuntimeError:  # a lazy parameter has none
        agree = False
    if not agree:
        check_match(op, "parameter", list(student.named_parameters()), list(teacher.named_parameters()))
    return params, averages


@torch.no_grad()
def copy_parameters(op: str, names: tuple[str, str], student: nn.Module, teacher: nn.Module) -> None:
    """teacher <- student for all parameters, in place. From then on the teacher's parameters need no gradient. Buffers stay."""
    params, averages = parameter_pairs(op, names, student, teacher)
    if averages:
        torch._foreach_copy_(averages, params)
    for average in averages:
        average.requires_grad_(False)


@torch.no_grad()
def average_parameters(op: str, names: tuple[str, str], student: nn.Module, teacher: nn.Module, kept: float) -> None:
    """teacher <- kept teacher + (1 - kept) student for all parameters, in place. Buffers stay.

    Two modules without parameters are left as they are, as a loop over ``zip`` would leave them.
    """
    params, averages = parameter_pairs(op, names, student, teacher)
    average_lists(op, (names[1], names[0], SHARE), averages, params, kept, "mul_add")


class _GradientTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


def gradient_times(factor: float, x: Tensor) -> Tensor:
    """``x``, whose gradient is multiplied: for libraries whose gradient over several processes has a factor of its own."""
    return _GradientTimes.apply(x, factor)
