"""SimSiam (Chen and He 2021): two views, one encoder, a predictor, and no gradient through the target; no negatives, no teacher.

    z = projector(backbone(view))    p = predictor(z)    loss = (D(p0, stop(z1)) + D(p1, stop(z0))) / 2,   D = negative cosine

Without the stopped gradient all embeddings become equal (the paper's section 4.1).
"""

from torch import Tensor, nn

from fastssl.functional import negative_cosine

from ._checks import check_widths, given
from ._teacher import EncoderMethod, mlp


class SimSiam(EncoderMethod):
    """SimSiam around any encoder: ``SimSiam(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Chen and He 2021, https://arxiv.org/abs/2011.10566, equation 4.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the projector's two hidden layers; by default ``feature_dim``. The paper's is ``projection_dim``.
        projection_dim: width D of projections and predictions; the paper's is 2048.
        prediction_hidden_dim: width of the predictor's hidden layer; by default a quarter of D, the paper's bottleneck.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = SimSiam(backbone, projection_dim=8)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> bool(-1 <= loss <= 1)
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 2048,
        prediction_hidden_dim: int | None = None,
    ):
        def projector(width: int) -> nn.Module:
            hidden = hidden_dim or width
            return mlp(width, hidden, hidden, projection_dim, last_norm=True)

        optional = given(hidden_dim=hidden_dim, prediction_hidden_dim=prediction_hidden_dim)
        check_widths("SimSiam", projection_dim=projection_dim, **optional)
        super().__init__(backbone, feature_dim, projector)
        self.prediction_head = mlp(projection_dim, prediction_hidden_dim or max(1, projection_dim // 4), projection_dim)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            Scalar float32 in [-1, 1]: the mean of both directions.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        z0, z1 = self.encoder(view0), self.encoder(view1)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (negative_cosine(p0, z1.detach()) + negative_cosine(p1, z0.detach()))
