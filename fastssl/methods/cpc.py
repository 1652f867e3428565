"""Contrastive predictive coding (van den Oord et al. 2018): from what was seen so far, tell the coming part from all others.

    z_t = backbone(x_t)        c_t = GRU(z_0 .. z_t)        loss = mean over steps k of InfoNCE(W_k c_t, z_{t+k})      (eq. 4)

over all t of all sequences of the batch: the negatives of a position are the other positions at that step. A sequence is
frames of sound, words, or the patches of a picture from top to bottom (``patch_columns``).
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.checks import check_dense
from fastssl.functional import info_nce

from ._checks import check_flags, check_negatives, check_positive, check_split, check_widths, given
from ._columns import patch_columns as patch_columns  # public by this module, too
from ._common import ranks_of, width_of
from ._encoder import features_of


class CPC(nn.Module):
    """CPC around any encoder of parts: ``CPC(backbone)(sequences)`` is the loss to call ``backward`` on.

    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4.

    Args:
        backbone: the encoder, any module from parts (N, ...) of sequences to features (N, feature_dim). It may also return maps, a
            mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        context_dim: width of the GRU's state; by default ``feature_dim``.
        projection_dim: width D in which predictions and parts are compared; None: ``feature_dim``, as in the paper.
        steps: how far ahead to predict, each with its own linear map; leave out 1 where neighbouring parts overlap.
        temperature: above 0.
        normalize: whether cosines are compared. False, with temperature 1, is the paper's bilinear form (equation 3).
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).
        split: function from what ``forward`` and ``embed`` get to sequences (B n, T, ...), such as ``patch_columns``.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> method = CPC(torch.nn.Linear(6, 8), steps=(1, 2))
        >>> sequences = torch.rand(5, 7, 6)
        >>> method(sequences).shape, method.embed(sequences).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        context_dim: int | None = None,
        projection_dim: int | None = None,
        steps: Sequence[int] = (1, 2, 3),
        temperature: float = 0.1,
        normalize: bool = True,
        split: Callable[[Tensor], Tensor] | None = None,
        negatives: str = "global",
    ):
        super().__init__()
        check_positive("CPC", temperature=temperature)
        check_widths("CPC", **given(context_dim=context_dim, projection_dim=projection_dim))
        if not isinstance(steps, tuple | list) or not steps or not all(isinstance(k, int) and k >= 1 for k in steps):
            raise ValueError(f"CPC: steps must be whole numbers of at least 1, at least one of them, got {steps}")
        check_flags("CPC", normalize=normalize)
        check_split("CPC", split)
        self.feature_dim = width_of(backbone, feature_dim, "CPC")
        self.steps, self.temperature, self.normalize, self.split = tuple(steps), temperature, normalize, split
        self.negatives = check_negatives("CPC", negatives)
        context_dim, width = context_dim or self.feature_dim, projection_dim or self.feature_dim
        self.backbone = backbone
        self.target = nn.Linear(self.feature_dim, width, bias=False) if projection_dim else nn.Identity()
        self.context = nn.GRU(self.feature_dim, context_dim, batch_first=True)
        self.predictions = nn.ModuleList(nn.Linear(context_dim, width) for _ in self.steps)

    def encode(self, x: Tensor) -> Tensor:
        """Sequences (B, T, ...), or what ``split`` makes into them -> features of their parts (B, T, feature_dim)."""
        check_dense("CPC", "sequences", x)
        sequences = x if self.split is None else self.split(x)
        if sequences.ndim < 3 or 0 in sequences.shape:
            raise ValueError(
                f"CPC: sequences must have shape (B, T, ...) of parts, none of them empty, got {tuple(sequences.shape)}"
            )
        parts = features_of(self.backbone, sequences.flatten(0, 1), self.feature_dim, "CPC", given="parts of sequences")
        return parts.unflatten(0, sequences.shape[:2])

    def embed(self, x: Tensor) -> Tensor:
        """Features of whole sequences.

        Args:
            x: sequences (B, T, ...), or what ``split`` makes into them.

        Returns:
            (B, feature_dim), the mean over the parts of each.
        """
        return self.encode(x).reshape(len(x), -1, self.feature_dim).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """The loss of a batch of sequences.

        Args:
            x: sequences (B, T, ...), T above the largest step, or what ``split`` makes into them.

        Returns:
            Scalar float32, the mean over the steps.

        Raises:
            ValueError: sequences that are no longer than the largest step.
        """
        z = self.encode(x)
        if z.shape[1] <= max(self.steps) or len(z) * (z.shape[1] - max(self.steps)) < 2:
            raise ValueError(
                f"CPC: sequences must be longer than the largest step {max(self.steps)}, got {tuple(z.shape[:2])} (B, T)"
            )
        context, _ = self.context(z)
        target = self.target(z)
        losses = []
        for k, predict in zip(self.steps, self.predictions, strict=True):
            query, key = predict(context[:, :-k]).flatten(0, 1), target[:, k:].flatten(0, 1)
            how: dict[str, Any] = {"temperature": self.temperature, "normalize": self.normalize, "group": ranks_of(self)}
            losses.append(cast(Tensor, info_nce(query, key, **how)))
        return torch.stack(losses).mean()
