"""SupCon (Khosla et al. 2020): SimCLR with a key for each picture; all views of pictures with the same key are positives.

    loss_i = lse_{j != i} s_ij - mean_{p: key_p = key_i, p != i} s_ip,    s = <z_i, z_j> / temperature      (eq. 2)

The key is a class, or whatever says that pictures belong together: the patient, the volume, the body region.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_vector
from fastssl.functional import sup_con

from ._checks import check_negatives, check_positive, check_widths, given
from ._common import BackboneMethod, ProjectionHead, ranks_of


class SupCon(BackboneMethod):
    """Supervised contrast around any encoder: ``SupCon(backbone)(view0, view1, labels)`` is the loss.

    Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: above 0.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).
        base_temperature: the loss is multiplied by temperature / base_temperature, in the SupContrast repository with 0.07; None
            leaves it as it is.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = SupCon(backbone, projection_dim=4)
        >>> view0, view1 = torch.rand(2, 5, 3, 2, 2)
        >>> method(view0, view1, torch.tensor([0, 0, 1, 1, 2])).shape
        torch.Size([])
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
        negatives: str = "global",
    ):
        check_widths("SupCon", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        if base_temperature is not None:
            check_positive("SupCon", base_temperature=base_temperature)
        super().__init__(backbone, feature_dim, temperature)
        self.base_temperature, self.negatives = base_temperature, check_negatives("SupCon", negatives)
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def forward(self, view0: Tensor, view1: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of two views, of which those with the same label are each other's positives.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.
            labels: (B,) integers of any value. Without labels each sample is a class of its own, as in SimCLR.

        Returns:
            Scalar float32.

        Raises:
            TypeError: views of different dtypes or devices, or labels that are no integers.
            ValueError: views of different shapes, a B below 2, or labels of another length.
        """
        self.check_views(view0, view1)
        if labels is not None:
            check_vector("SupCon", "labels", labels, len(view0), INTEGERS, "view0", view0)
        z = self.projection_head(self.embed(torch.cat([view0, view1]))).unflatten(0, (2, -1)).transpose(0, 1)
        how: dict[str, Any] = {"temperature": self.temperature, "base_temperature": self.base_temperature}
        return sup_con(z, labels, **how, normalize=True, group=ranks_of(self))
