"""VICReg (Bardes et al. 2022): two views agree, each feature varies over the batch, different features do not; no negatives.

z = projector(backbone(view))
loss = lambda mean (z0 - z1)^2 + mu (v(z0) + v(z1)) / 2 + nu (c(z0) + c(z1))
v(z) = mean_j max(0, 1 - sqrt(var z_j + eps))    c(z) = sum_{i != j} cov(z_i, z_j)^2 / D
"""

from torch import Tensor, nn

from fastssl.functional import vicreg

from ._checks import check_positive, check_statistics, check_widths, given
from ._common import ranks_of
from ._teacher import EncoderMethod, mlp


class VICReg(EncoderMethod):
    """VICReg around any encoder: ``VICReg(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Bardes et al. 2022, https://arxiv.org/abs/2105.04906, equation 6, with the halved variance term of the authors' code.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the projector's two hidden layers; by default ``projection_dim``, as in the paper.
        projection_dim: width D of the embeddings; the paper's is 8192.
        lambda_param, mu_param, nu_param: weights of agreement, variance and covariance, above 0.
        statistics: as of ``BarlowTwins``.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = VICReg(backbone, projection_dim=16)
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
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        statistics: str = "global",
    ):
        def projector(width: int) -> nn.Module:
            hidden = hidden_dim or projection_dim
            return mlp(width, hidden, hidden, projection_dim, last_bias=False)

        check_widths("VICReg", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        check_positive("VICReg", lambda_param=lambda_param, mu_param=mu_param, nu_param=nu_param)
        super().__init__(backbone, feature_dim, projector)
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.statistics = check_statistics("VICReg", statistics)

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
        return vicreg(
            self.encoder(view0),
            self.encoder(view1),
            lambda_param=self.lambda_param,
            mu_param=self.mu_param,
            nu_param=self.nu_param,
            group=ranks_of(self),
        )
