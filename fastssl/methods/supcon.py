"""SupCon (Khosla et al. 2020): SimCLR with a key for each picture; all views of pictures with the same key are positives.

    loss_i = lse_{j != i} s_ij - mean_{p: key_p = key_i, p != i} s_ip,    s = <z_i, z_j> / temperature      (eq. 2)

The key is a class, or whatever says that pictures belong together: the patient, the volume, the body region.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_vector
from fastssl.functional import sup_con

from ._common import ImageMethod, ProjectionHead, check_positive, check_widths, given


class SupCon(ImageMethod):
    """Supervised contrast around any encoder: ``SupCon(backbone)(view0, view1, labels)`` is the loss.

    Args:
        backbone: inputs (B, ...) -> features (B, feature_dim), or maps, a mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features; by default found by a probe.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: above 0.
        base_temperature: the loss is multiplied by temperature / base_temperature; None: not. SupContrast has 0.07.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        base_temperature: float | None = None,
    ):
        check_widths("SupCon", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        if base_temperature is not None:
            check_positive("SupCon", base_temperature=base_temperature)
        super().__init__(backbone, feature_dim, temperature)
        self.base_temperature = base_temperature
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def forward(self, view0: Tensor, view1: Tensor, labels: Tensor | None = None) -> Tensor:
        """Two views (B, ...) of the same B >= 2 samples, labels (B,) of any integers -> loss; without labels, SimCLR's."""
        self.check_views(view0, view1)
        if labels is not None:
            check_vector("SupCon", "labels", labels, len(view0), INTEGERS, "view0", view0)
        z = self.projection_head(self.embed(torch.cat([view0, view1]))).unflatten(0, (2, -1)).transpose(0, 1)
        options = {"temperature": self.temperature, "base_temperature": self.base_temperature}
        return sup_con(z, labels, normalize=True, **options)
