"""What can be said of an encoder by looking at its layers: its first one of a type, and whether it can be used at all."""

from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

Layer = TypeVar("Layer", bound=nn.Module)


def check_encoder(backbone: Any, name: str, argument: str = "backbone") -> None:
    if not isinstance(backbone, nn.Module):
        kind = f"the class {backbone.__name__}" if isinstance(backbone, type) else type(backbone).__name__
        raise TypeError(f"{name}: {argument} must be a torch.nn.Module, got {kind}")


def refuse_lazy(backbone: nn.Module, name: str, of: str = "backbone") -> None:
    lazy = [key for key, value in (*backbone.named_parameters(), *backbone.named_buffers()) if is_lazy(value)]
    if lazy:
        raise ValueError(f"{name}: the {of} has lazy parameters ({lazy[0]}); give them their shape first, by a call with inputs")


def first_layer(encoder: nn.Module, layer: type[Layer]) -> Layer | None:
    """The first layer of a type, in the order in which the layers were registered."""
    return next((module for module in encoder.modules() if isinstance(module, layer)), None)
