"""Contrastive multiview coding (Tian et al. 2020): kinds of view (lightness and colour, depth, ...), one encoder for each.

    full graph   loss = sum_{i < j} L(V_i, V_j)          every pair of views                                (eq. 8)
    core view    loss = sum_{j > 0} L(V_0, V_j)          the first view with each other one                 (eq. 7)

L is symmetric InfoNCE, the mean of i to j and j to i, both from one sweep, over the batch where the paper samples from a bank.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice
from fastssl.functional import info_nce

from ._checks import check_batch, check_negatives, check_positive, check_split, check_widths, given
from ._common import ProjectionHead, ranks_of, width_of
from ._encoder import features_of


class CMC(nn.Module):
    """CMC around V >= 2 encoders: ``CMC([lightness_encoder, colour_encoder])(lightness, colour)`` is the loss.

    Tian et al. 2020, https://arxiv.org/abs/1906.05849, equations 7 and 8.

    Args:
        backbones: V encoders. Encoder i goes from view i (B, ...) to features (B, feature_dims[i]).
        feature_dims: width of each encoder's features. By default probes find them.
        hidden_dim: width of the heads' hidden layer; by default that of the features.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: of InfoNCE, above 0.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).
        graph: "full" for all pairs of views, or "core" for the first view with each other one.
        split: function from images to a tuple of V views, for ``embed(images)``.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: fewer than two backbones, an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> method = CMC([torch.nn.Linear(4, 8), torch.nn.Linear(6, 8)], projection_dim=4)
        >>> sound, picture = torch.rand(5, 4), torch.rand(5, 6)
        >>> method(sound, picture).shape, method.embed(sound, picture).shape
        (torch.Size([]), torch.Size([5, 16]))
    """

    def __init__(
        self,
        backbones: Sequence[nn.Module],
        feature_dims: Sequence[int] | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        graph: str = "full",
        split: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
        negatives: str = "global",
    ):
        super().__init__()
        name = type(self).__name__
        check_positive(name, temperature=temperature)
        check_choice(name, "graph", graph, ("full", "core"))
        check_widths(name, projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        check_split(name, split)
        for argument, value in {"backbones": backbones, **given(feature_dims=feature_dims)}.items():
            if not isinstance(value, tuple | list | nn.ModuleList):
                raise TypeError(f"{name}: {argument} must be a list, one for each view, got {type(value).__name__}")
        if len(backbones) < 2:
            raise ValueError(f"{name}: backbones must be at least 2 encoders, one for each view, got {len(backbones)}")
        dims = [None] * len(backbones) if feature_dims is None else list(feature_dims)
        if len(dims) != len(backbones):
            raise ValueError(
                f"{name}: feature_dims must have one width for each of the {len(backbones)} backbones, got {len(dims)}"
            )
        named = enumerate(zip(backbones, dims, strict=True))
        dims = [width_of(b, dim, name, f"feature_dims[{i}]", f"backbones[{i}]") for i, (b, dim) in named]
        self.feature_dims, self.temperature, self.graph, self.split = dims, temperature, graph, split
        self.negatives = check_negatives(name, negatives)
        self.backbones = nn.ModuleList(backbones)
        self.projection_heads = nn.ModuleList(ProjectionHead(dim, hidden_dim or dim, projection_dim) for dim in dims)

    def features(self, views: Sequence[Tensor]) -> list[Tensor]:
        """V views (B, ...) -> V features (B, feature_dims[i])."""
        name = type(self).__name__
        check_batch(name, 1, **{f"view{i}": view for i, view in enumerate(views)})
        if len(views) != len(self.backbones) or len({len(view) for view in views}) > 1:
            shapes = ", ".join(str(tuple(view.shape)) for view in views)
            raise ValueError(f"{name}: expected {len(self.backbones)} views of the same B samples, got {shapes}")
        parts = enumerate(zip(self.backbones, views, self.feature_dims, strict=True))
        return [features_of(backbone, view, dim, name, f"backbones[{i}]", f"view{i}") for i, (backbone, view, dim) in parts]

    def embed(self, *views: Tensor) -> Tensor:
        """The features of all encoders side by side.

        Args:
            *views: V views (B, ...), or images alone where the method has ``split``.

        Returns:
            (B, sum of ``feature_dims``).
        """
        if len(views) == 1 and self.split is not None:
            views = self.split(views[0])
        return torch.cat(self.features(views), 1)

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of V views.

        Args:
            *views: V tensors (B, ...), one for each encoder, of the same B samples; B is at least 2.

        Returns:
            Scalar float32: the sum over the pairs of views.

        Raises:
            ValueError: another number of views than encoders, or views of different B or of a B below 2.
        """
        features = self.features(views)
        if len(views[0]) < 2:
            raise ValueError(f"{type(self).__name__}: the views must have B of at least 2 samples, got {len(views[0])}")
        z = [head(part) for head, part in zip(self.projection_heads, features, strict=True)]
        pairs = combinations(z, 2) if self.graph == "full" else ((z[0], other) for other in z[1:])
        how: dict[str, Any] = {"temperature": self.temperature, "group": ranks_of(self)}
        losses = [cast(Tensor, info_nce(a, b, **how, symmetric=True)) for a, b in pairs]
        return sum(losses[1:], start=losses[0])
