"""What the methods share: an encoder with a temperature, heads, checks of their arguments, random rows, the loss in a dict."""

from typing import Any

import numpy
import torch
from torch import Tensor, nn

from fastssl.checks import (
    INTEGERS,
    LARGEST,
    NUMBERS,
    as_python,
    check_choice,
    check_dense,
    check_scalar,
    check_vector,
    check_whole,
    readable,
)
from fastssl.distributed import Ranks

from ._encoder import check_encoder, features_of, find_feature_dim


class ProjectionHead(nn.Sequential):
    """Linear layer, batch normalisation, ReLU, linear layer: (N, in_dim) -> (N, out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )


class ImageMethod(nn.Module):
    """A method that learns from two views of a sample: features by the rules of ``_encoder``, and checks of the views.

    A subclass keeps the encoder where it needs it, and gives ``embed``.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int | None):
        super().__init__()
        self.feature_dim = width_of(backbone, feature_dim, type(self).__name__)

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone: what evaluation and later tasks use.

        Args:
            images: (B, ...), what the backbone takes.

        Returns:
            (B, feature_dim), before any head.
        """
        raise NotImplementedError

    def check_views(self, view0: Tensor, view1: Tensor) -> None:
        """Refuses views that are not (B, ...) of one shape, dtype and device, with B of at least 2."""
        check_batch(type(self).__name__, 2, view0=view0, view1=view1)
        if view0.shape != view1.shape:
            raise ValueError(
                f"{type(self).__name__}: view0 and view1 must have the same shape (B, ...), "
                f"got {tuple(view0.shape)} and {tuple(view1.shape)}"
            )
        if view0.device != view1.device or (view0.dtype != view1.dtype and not torch.is_autocast_enabled(view0.device.type)):
            raise TypeError(
                f"{type(self).__name__}: view0 and view1 must have the same dtype and device, "
                f"got {view0.dtype} on {view0.device} and {view1.dtype} on {view1.device}"
            )


class BackboneMethod(ImageMethod):
    """An ``ImageMethod`` with a temperature, whose backbone stands alone and not in one module with a head."""

    def __init__(self, backbone: nn.Module, feature_dim: int | None, temperature: float):
        check_positive(type(self).__name__, temperature=temperature)
        super().__init__(backbone, feature_dim)
        self.temperature = temperature
        self.backbone = backbone

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone: what evaluation and later tasks use.

        Args:
            images: (B, ...), what the backbone takes.

        Returns:
            (B, feature_dim), before any head.
        """
        return features_of(self.backbone, images, self.feature_dim, type(self).__name__)


def width_of(encoder: nn.Module, width: int | None, name: str, argument: str = "feature_dim", of: str = "backbone") -> int:
    """The width of an encoder's features: ``width`` itself, or what a probe of the encoder finds where it is None.

    ``name`` is the method's; ``argument`` and ``of`` are what the method calls the width and the encoder.
    """
    check_encoder(encoder, name, of)
    if width is None:
        return find_feature_dim(encoder, name, argument, of)
    check_widths(name, **{argument: width})
    return width


def given(**values: Any) -> dict[str, Any]:
    """Those of the arguments that are not None."""
    return {argument: value for argument, value in values.items() if value is not None}


def check_widths(name: str, **widths: int) -> None:
    """Refuses what is no whole number of at least 1."""
    for argument, value in widths.items():
        check_whole(name, argument, value, 1)


def _number(name: str, argument: str, value: float | Tensor) -> float | None:
    """A number or one-element float tensor as a number; None where the host may not look at it."""
    if isinstance(value, Tensor):
        check_scalar(name, argument, value, value)
        return float(value.detach()) if readable(value) else None
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    return as_python(value)


def check_positive(name: str, **values: float | Tensor) -> None:
    """Refuses what is no finite number above 0."""
    for argument, value in values.items():
        number = _number(name, argument, value)
        if number is not None and not 0 < number <= LARGEST:
            raise ValueError(f"{name}: {argument} must be above 0 and finite, got {value}")


def check_share(name: str, **values: float | Tensor) -> None:
    """Refuses what is no share in [0, 1] of a teacher that a step keeps."""
    for argument, value in values.items():
        number = _number(name, argument, value)
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"{name}: {argument} must be in [0, 1], the share of the teacher that is kept, got {value}")


def check_flags(name: str, **values: bool) -> None:
    for argument, value in values.items():
        if not isinstance(value, (int, numpy.bool_)) or value not in (0, 1):
            raise TypeError(f"{name}: {argument} must be True or False, got {type(value).__name__}")


def check_split(name: str, split: Any) -> None:
    if split is not None and not callable(split):
        raise TypeError(f"{name}: split must be a function, got {type(split).__name__}")


def check_negatives(name: str, negatives: str) -> str:
    check_choice(name, "negatives", negatives, ("global", "local"))
    return negatives


def check_statistics(name: str, statistics: str) -> str:
    check_choice(name, "statistics", statistics, ("global", "local"))
    return statistics


def sees_all_rows(method: nn.Module) -> bool:
    """Whether a method's loss is over the rows of all processes: by its ``negatives``, or its ``statistics`` where it has none."""
    return "global" in (getattr(method, "negatives", None), getattr(method, "statistics", None))


def ranks_of(method: nn.Module) -> Ranks | None:
    """What a method's losses take as ``group``."""
    return Ranks() if sees_all_rows(method) else None


def check_batch(name: str, least: int, **inputs: Tensor) -> None:
    """Refuses what is no dense tensor (B, ...) with something in it and B of at least ``least``."""
    for argument, value in inputs.items():
        check_dense(name, argument, value, "a tensor (B, ...)")
        if value.ndim < 2 or 0 in value.shape or len(value) < least:
            raise ValueError(f"{name}: {argument} must have shape (B, ...) with B of at least {least}, got {tuple(value.shape)}")


def samples_of(name: str, index: Tensor, images: Tensor, num_samples: int) -> Tensor:
    """index (B,) as int64: which of ``num_samples`` samples the images (B, ...) are of. Refused where it does not fit them."""
    check_vector(name, "index", index, len(images), INTEGERS, "images", images)
    if readable(index) and not 0 <= int(index.min()) <= int(index.max()) < num_samples:
        bounds = f"{int(index.min())} to {int(index.max())}"
        raise ValueError(f"{name}: index must lie in 0 to {num_samples - 1} (num_samples), got {bounds}")
    return index.long()


def check_like_first(name: str, **views: Tensor) -> None:
    """Refuses views (B, ...) of which one has another B, dtype or device than the first."""
    first_name, first = next(iter(views.items()))
    for argument, view in views.items():
        if len(view) != len(first):
            raise ValueError(f"{name}: {argument} must have as many rows as {first_name}, {len(first)}, got {len(view)}")
        if view.device != first.device or (view.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type)):
            raise TypeError(
                f"{name}: {argument} must have dtype and device of {first_name}, {first.dtype} on {first.device}, "
                f"got {view.dtype} on {view.device}"
            )


def return_dict(method: nn.Module) -> nn.Module:
    """Makes ``method(...)`` return ``{"loss": loss}`` in place of the loss, and returns the method.

    For trainers that look a loss up by name, such as transformers' ``Trainer``. State keys and ``method.forward`` stay as they are.

    Args:
        method: any module whose call returns the loss; it is changed in place.

    Returns:
        ``method`` itself.

    Raises:
        TypeError: ``method`` is no module.

    Examples:
        >>> method = return_dict(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)))
        >>> sorted(method(torch.zeros(1, 3)))
        ['loss']
    """
    check_encoder(method, "return_dict", "method")
    method.register_forward_hook(_in_a_dict)
    return method


def _in_a_dict(method: nn.Module, given: tuple, output: Any) -> Any:
    return {"loss": output} if isinstance(output, Tensor) else output


def random_unit_rows(rows: int, width: int) -> Tensor:
    """(rows, width) float32, directions uniform on the sphere: what a bank or queue holds before its first embeddings."""
    return nn.functional.normalize(torch.randn(rows, width), dim=1)
