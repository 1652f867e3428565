"""What the methods share: an encoder with a temperature, heads, what they compare over processes, the loss in a dict."""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.distributed import Ranks

from ._checks import check_batch, check_positive, check_widths
from ._encoder import features_of
from ._layers import check_encoder
from ._probe import find_feature_dim


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


class PlainMethod(ImageMethod):
    """An ``ImageMethod`` whose backbone stands alone and not in one module with a head."""

    def __init__(self, backbone: nn.Module, feature_dim: int | None):
        super().__init__(backbone, feature_dim)
        self.backbone = backbone

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone: what evaluation and later tasks use.

        Args:
            images: (B, ...), what the backbone takes.

        Returns:
            (B, feature_dim), before any head.
        """
        return features_of(self.backbone, images, self.feature_dim, type(self).__name__)


class BackboneMethod(PlainMethod):
    """A ``PlainMethod`` with a temperature."""

    def __init__(self, backbone: nn.Module, feature_dim: int | None, temperature: float):
        check_positive(type(self).__name__, temperature=temperature)
        super().__init__(backbone, feature_dim)
        self.temperature = temperature


def width_of(encoder: nn.Module, width: int | None, name: str, argument: str = "feature_dim", of: str = "backbone") -> int:
    """The width of an encoder's features: ``width`` itself, or what a probe of the encoder finds where it is None.

    ``name`` is the method's; ``argument`` and ``of`` are what the method calls the width and the encoder.
    """
    check_encoder(encoder, name, of)
    if width is None:
        return find_feature_dim(encoder, name, argument, of)
    check_widths(name, **{argument: width})
    return width


def sees_all_rows(method: nn.Module) -> bool:
    """Whether a method's loss is over the rows of all processes: by its ``negatives``, or its ``statistics`` where it has none."""
    return "global" in (getattr(method, "negatives", None), getattr(method, "statistics", None))


def ranks_of(method: nn.Module) -> Ranks | None:
    """What a method's losses take as ``group``."""
    return Ranks() if sees_all_rows(method) else None


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
