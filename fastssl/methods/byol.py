"""BYOL (Grill et al. 2020): a prediction of the teacher's projection of the other view; no negatives.

p = predictor(encoder(view))    z = teacher(view)    loss = |unit(p0) - unit(z1)|^2 + |unit(p1) - unit(z0)|^2
"""

from torch import Tensor, nn

from fastssl.functional import byol_loss

from ._checks import check_widths, given
from ._common import ProjectionHead
from ._recompute import once
from ._teacher import TeacherMethod


class BYOL(TeacherMethod):
    """BYOL around any encoder: ``BYOL(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Grill et al. 2020, https://arxiv.org/abs/2006.07733, equation 2.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the hidden layers of projector and predictor; by default ``feature_dim``. The paper's is 4096.
        projection_dim: width D of projections and predictions; the paper's is 256.
        momentum: share of the teacher that is kept at the first step.
        final_momentum: share that the momentum reaches over ``total_steps`` along half a cosine.
        total_steps: number of steps of the training. None: the momentum stays.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = BYOL(backbone, hidden_dim=6, projection_dim=4, total_steps=100)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> loss.shape, int(method.step)
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 256,
        momentum: float = 0.996,
        final_momentum: float | None = 1.0,
        total_steps: int | None = None,
    ):
        def projector(width: int) -> nn.Module:
            return ProjectionHead(width, hidden_dim or width, projection_dim)

        check_widths("BYOL", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        super().__init__(backbone, feature_dim, projector, momentum, final_momentum, total_steps)
        self.prediction_head = ProjectionHead(projection_dim, hidden_dim or self.feature_dim, projection_dim)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views. In training mode the teacher moves before.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            Scalar float32 in [0, 8]: the sum of both directions.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        p0, p1 = (self.prediction_head(self.encoder(view)) for view in (view0, view1))
        z0, z1 = once(self, view0, lambda: self.targets(view0, view1))
        return byol_loss(p0, z1) + byol_loss(p1, z0)
