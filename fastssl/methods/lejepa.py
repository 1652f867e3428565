"""LeJEPA (Balestriero and LeCun 2025): all views of a sample meet at the mean of its global views, and SIGReg spreads the samples.

    z_v = projector(backbone(view_v))    m = mean of z_v over the global views
    loss = (1 - lambda) mean (z_v - m)^2 + lambda mean_v SIGReg(z_v)

SIGReg compares the embeddings along random directions with a standard normal distribution. There is no teacher, no predictor and no
stopped gradient.
"""

from itertools import groupby

import torch
from torch import Tensor, nn

from fastssl.checks import check_share
from fastssl.functional import lejepa_loss

from ._checks import check_batch, check_like_first, check_statistics, check_widths, given
from ._common import ranks_of
from ._recompute import once
from ._teacher import EncoderMethod, mlp


class LeJEPA(EncoderMethod):
    """LeJEPA around any encoder: ``LeJEPA(backbone)(view0, view1, ...)`` is the loss to call ``backward`` on.

    Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544.

    ``step``, int64 (), counts the forwards in training mode and is in the state dict. The directions follow from it: each step has
    others, all processes have the same, and a run that is resumed goes on with those that it would have had.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the projector's two hidden layers; by default ``feature_dim``.
        projection_dim: width D of the embeddings.
        lambda_param: weight of SIGReg, in [0, 1]; the rest is that of the agreement.
        slices: number of directions of a step.
        global_views: how many of the views, the first ones, make the mean that all views meet at.
        statistics: as of ``BarlowTwins``.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = LeJEPA(backbone, projection_dim=4, slices=64)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> loss.shape, int(method.step)
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        lambda_param: float = 0.05,
        slices: int = 1024,
        global_views: int = 2,
        statistics: str = "global",
    ):
        def projector(width: int) -> nn.Module:
            hidden = hidden_dim or width
            return mlp(width, hidden, hidden, projection_dim)

        widths = {"projection_dim": projection_dim, "slices": slices, "global_views": global_views}
        check_widths("LeJEPA", **widths, **given(hidden_dim=hidden_dim))
        check_share("LeJEPA", "lambda_param", lambda_param)
        super().__init__(backbone, feature_dim, projector)
        self.lambda_param, self.slices, self.global_views = lambda_param, slices, global_views
        self.statistics = check_statistics("LeJEPA", statistics)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of several views.

        Args:
            views: (B, ...) float each, views of the same B samples, the global ones first; B is at least 2. Views that follow each
                other and have the same shape go through the encoder as one batch.

        Returns:
            Scalar float32, at least 0.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: fewer than two views, or than ``global_views``; views of different B, or with a B below 2.
        """
        self.check_all(views)
        parts = [list(part) for _, part in groupby(views, key=lambda view: view.shape)]
        z = torch.cat([self.encoder(torch.cat(part)).unflatten(0, (len(part), -1)) for part in parts])
        seed = once(self, views[0], self.next_step)
        return lejepa_loss(
            z,
            global_views=self.global_views,
            lambda_param=self.lambda_param,
            slices=self.slices,
            seed=seed,
            group=ranks_of(self),
        )

    def next_step(self) -> Tensor:
        """The number of this step, () int64, which the directions follow from; in training mode the next one has the next."""
        number = self.step.clone()
        if self.training:
            self.step.add_(1)
        return number

    def check_all(self, views: tuple[Tensor, ...]) -> None:
        """Refuses views that are not (B, ...) of one B, dtype and device, or too few of them."""
        least = max(2, self.global_views)
        if len(views) < least:
            listed = any(isinstance(view, list | tuple) for view in views)
            hint = " list; each view is an argument of its own: method(*views)" if listed else ""
            raise ValueError(f"LeJEPA: at least {least} views are needed, got {len(views)}{hint}")
        names = {f"view{i}": view for i, view in enumerate(views)}
        check_batch("LeJEPA", 2, **names)
        check_like_first("LeJEPA", **names)
