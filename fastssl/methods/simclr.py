"""SimCLR (Chen et al. 2020): two views of a picture, one encoder, one projection head, NT-Xent.

    z = head(backbone(cat(view0, view1)))        loss = nt_xent(z[:B], z[B:], temperature)

Both views go through encoder and head as one batch of 2B: batch normalisation then sees the same statistics for both
views, as in the paper's code, and the device gets one large call in place of two small ones.
"""

import torch
from torch import Tensor, nn

from fastssl.functional import nt_xent

from ._checks import check_negatives, check_widths, given
from ._common import BackboneMethod, ProjectionHead, ranks_of
from ._probe import find_feature_dim

__all__ = ["ProjectionHead", "SimCLR", "find_feature_dim"]


class SimCLR(BackboneMethod):
    """SimCLR around any encoder: ``SimCLR(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709: NT-Xent is its equation 1.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: of NT-Xent, above 0.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = SimCLR(backbone, projection_dim=4)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> loss.shape, method.embed(torch.rand(5, 3, 2, 2)).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.5,
        negatives: str = "global",
    ):
        check_widths("SimCLR", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        super().__init__(backbone, feature_dim, temperature)
        self.negatives = check_negatives("SimCLR", negatives)
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            NT-Xent, scalar float32, averaged over the 2B rows.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        z0, z1 = self.projection_head(self.embed(torch.cat([view0, view1]))).chunk(2)
        return nt_xent(z0, z1, self.temperature, group=ranks_of(self))
