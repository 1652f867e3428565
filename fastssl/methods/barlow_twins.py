"""Barlow Twins (Zbontar et al. 2021): the correlations between the features of two views become the identity; no negatives.

z = projector(backbone(view))    C = correlation of the columns of z0 with those of z1, over the batch
loss = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2
"""

from torch import Tensor, nn

from fastssl.functional import barlow_twins

from ._checks import check_positive, check_statistics, check_widths, given
from ._common import ranks_of
from ._teacher import EncoderMethod, mlp


class BarlowTwins(EncoderMethod):
    """Barlow Twins around any encoder: ``BarlowTwins(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Zbontar et al. 2021, https://arxiv.org/abs/2103.03230, equation 1.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the projector's two hidden layers; by default ``projection_dim``, as in the paper.
        projection_dim: width D of the embeddings; the paper's is 8192.
        lambda_param: weight of the correlations between different features, above 0.
        statistics: with several processes, "global" takes means, variances and correlations over the rows of all of them, "local"
            over those of each process alone (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = BarlowTwins(backbone, projection_dim=16)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> loss.shape, bool(loss >= 0)
        (torch.Size([]), True)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 8192,
        lambda_param: float = 5e-3,
        statistics: str = "global",
    ):
        def projector(width: int) -> nn.Module:
            hidden = hidden_dim or projection_dim
            return mlp(width, hidden, hidden, projection_dim, last_bias=False)

        check_widths("BarlowTwins", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        check_positive("BarlowTwins", lambda_param=lambda_param)
        super().__init__(backbone, feature_dim, projector)
        self.lambda_param = lambda_param
        self.statistics = check_statistics("BarlowTwins", statistics)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            Scalar float32, at least 0.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        return barlow_twins(self.encoder(view0), self.encoder(view1), self.lambda_param, group=ranks_of(self))
