"""COLA (Saeed et al. 2021): two segments of one sound are told from the segments of all others by a bilinear similarity.

    g(x) = tanh(norm(V backbone(x)))        s(x, x') = g(x)^T W g(x')
    loss = -(1 / B) sum_i log( exp s(x_i, x'_i) / sum_j exp s(x_i, x'_j) )                                               (eq. 1)

This is ``info_nce`` of the rows g(x) W and the keys g(x'), neither of unit length, at temperature 1.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.functional import info_nce

from ._checks import check_negatives, check_widths
from ._common import PlainMethod, ranks_of


class COLA(PlainMethod):
    """COLA around any encoder: ``COLA(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Saeed et al. 2021, https://arxiv.org/abs/2010.10915, equation 1.

    Args:
        backbone: the encoder, any module from segments (B, ...) to features (B, feature_dim), such as ``LogMel`` and a
            convolutional network behind it. It may also return maps, a mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        projection_dim: width D of g(x).
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> method = COLA(torch.nn.Linear(6, 8), projection_dim=4)
        >>> view0, view1 = torch.rand(5, 6), torch.rand(5, 6)
        >>> method(view0, view1).shape, method.embed(view0).shape, method.similarity(view0, view1).shape
        (torch.Size([]), torch.Size([5, 8]), torch.Size([5, 5]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        projection_dim: int = 512,
        negatives: str = "global",
    ):
        check_widths("COLA", projection_dim=projection_dim)
        super().__init__(backbone, feature_dim)
        self.negatives = check_negatives("COLA", negatives)
        self.projection = nn.Sequential(nn.Linear(self.feature_dim, projection_dim), nn.LayerNorm(projection_dim), nn.Tanh())
        self.bilinear = nn.Linear(projection_dim, projection_dim, bias=False)

    def similarity(self, view0: Tensor, view1: Tensor) -> Tensor:
        """s of all pairs of segments (N, ...) and (M, ...) -> (N, M)."""
        rows, keys = (self.projection(self.embed(view)) for view in (view0, view1))
        return self.bilinear(rows) @ keys.T

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two segments of each sound.

        Args:
            view0, view1: (B, ...), rows i of both are segments of one sound; B is at least 2.

        Returns:
            Scalar float32.

        Raises:
            ValueError: segments of different shapes, or a B below 2.
        """
        self.check_views(view0, view1)
        features = self.projection(self.embed(torch.cat([view0, view1])))
        rows, keys = self.bilinear(features[: len(view0)]), features[len(view0) :]
        how: dict[str, Any] = {"temperature": 1.0, "normalize": False, "group": ranks_of(self)}
        return cast(Tensor, info_nce(rows, keys, **how))
