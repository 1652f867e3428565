"""MoCo v3 (Chen, Xie, He 2021, algorithm 1): a query against the teacher's keys of the batch; no queue, and a predictor.

q = predictor(encoder(view))    k = teacher(view)    loss = L(q0, k1) + L(q1, k0),   L = 2 t InfoNCE(unit(q), unit(k), t)
"""

from torch import Tensor, nn

from fastssl.functional import moco_v3_loss

from ._checks import check_negatives, check_positive, check_widths, given
from ._common import ranks_of
from ._recompute import once
from ._teacher import TeacherMethod, mlp


class MoCoV3(TeacherMethod):
    """MoCo v3 around any encoder: ``MoCoV3(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Chen, Xie and He 2021, https://arxiv.org/abs/2104.02057, equation 1 and algorithm 1.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the hidden layers of projector and predictor; by default ``feature_dim``. The paper's is 4096.
        projection_dim: width D of queries and keys; the paper's is 256.
        momentum: share of the teacher that is kept at the first step.
        final_momentum: share that the momentum reaches over ``total_steps`` along half a cosine.
        total_steps: number of steps of the training. None: the momentum stays.
        temperature: above 0.
        negatives: with several processes, "global" compares with the keys of all of them, "local" with those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = MoCoV3(backbone, hidden_dim=6, projection_dim=4, total_steps=100)
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
        momentum: float = 0.99,
        final_momentum: float | None = 1.0,
        total_steps: int | None = None,
        temperature: float = 0.2,
        negatives: str = "global",
    ):
        def projector(width: int) -> nn.Module:
            return mlp(width, hidden_dim or width, projection_dim, last_norm=True)

        check_positive("MoCoV3", temperature=temperature)
        check_widths("MoCoV3", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        super().__init__(backbone, feature_dim, projector, momentum, final_momentum, total_steps)
        self.temperature, self.negatives = temperature, check_negatives("MoCoV3", negatives)
        self.prediction_head = mlp(projection_dim, hidden_dim or self.feature_dim, projection_dim, last_norm=True)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views. In training mode the teacher moves before.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            Scalar float32: the sum of both directions, each with the factor 2 temperature of the authors' code.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        q0, q1 = (self.prediction_head(self.encoder(view)) for view in (view0, view1))
        k0, k1 = once(self, view0, lambda: self.targets(view0, view1))
        group = ranks_of(self)
        return moco_v3_loss(q0, k1, self.temperature, group=group) + moco_v3_loss(q1, k0, self.temperature, group=group)
