"""NNCLR (Dwibedi et al. 2021): the positive is not the other view but its nearest neighbour in a queue of embeddings.

    z = head(backbone(view))    p = predictor(z)    n = queue[argmax_q <z, q>]    loss = (InfoNCE(n0, p1) + InfoNCE(n1, p0)) / 2

InfoNCE's softmax runs over the predictions of the batch. No gradient flows to the neighbours; after the loss, the embeddings of
the first views take the place of the oldest ones in the queue.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.distributed.gather import gather_rows
from fastssl.functional import info_nce, nearest_neighbor, queue_push_

from ._checks import check_negatives, check_widths, given
from ._common import BackboneMethod, ProjectionHead, random_unit_rows, ranks_of
from ._recompute import once, recomputing


class NNCLR(BackboneMethod):
    """NNCLR around any encoder: ``NNCLR(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548, equations 3 and 4.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        hidden_dim: width of the projection head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of embeddings, predictions and queue.
        prediction_hidden_dim: width of the predictor's hidden layer; by default that of the projection head's.
        queue_size: number K of embeddings in the queue, which is float32 and in the state dict. It holds random directions until
            embeddings have replaced them.
        temperature: of InfoNCE, above 0.
        negatives: with several processes, "global" compares with the predictions of all of them, "local" with those of each
            process alone (docs/methods.md, Several processes).

    With several processes the queue takes the embeddings of all, in the order of the ranks, and so is the same in each;
    ``MoCoQueue`` says what to tell DDP about its buffers. The softmax runs over the predictions of
    all, or with local negatives over those of the process's own batch.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = NNCLR(backbone, projection_dim=4, queue_size=16)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> loss.shape, int(method.queue_pointer)
        (torch.Size([]), 5)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        prediction_hidden_dim: int | None = None,
        queue_size: int = 65536,
        temperature: float = 0.1,
        negatives: str = "global",
    ):
        optional = given(hidden_dim=hidden_dim, prediction_hidden_dim=prediction_hidden_dim)
        check_widths("NNCLR", queue_size=queue_size, projection_dim=projection_dim, **optional)
        super().__init__(backbone, feature_dim, temperature)
        self.negatives = check_negatives("NNCLR", negatives)
        hidden = hidden_dim or self.feature_dim
        self.projection_head = ProjectionHead(self.feature_dim, hidden, projection_dim)
        self.prediction_head = ProjectionHead(projection_dim, prediction_hidden_dim or hidden, projection_dim)
        self.queue: Tensor
        self.queue_pointer: Tensor
        self.register_buffer("queue", random_unit_rows(queue_size, projection_dim))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views. In training mode the embeddings of ``view0`` go onto the queue.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            InfoNCE, scalar float32, averaged over both directions.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2.
        """
        self.check_views(view0, view1)
        z = self.projection_head(self.embed(torch.cat([view0, view1])))
        p0, p1 = self.prediction_head(z).chunk(2)
        found, new = once(self, view0, lambda: self.neighbours(z.detach()))
        n0, n1 = found.to(p0.dtype).chunk(2)
        how: dict[str, Any] = {"temperature": self.temperature, "group": ranks_of(self)}
        loss0, loss1 = (cast(Tensor, info_nce(n, p, **how)) for n, p in ((n0, p1), (n1, p0)))
        loss = 0.5 * (loss0 + loss1)
        if self.training and not recomputing():
            queue_push_(self.queue, self.queue_pointer, new, layout="kd")
        return loss

    @torch.no_grad()
    def neighbours(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (2 B, D) of two views -> the nearest rows of the queue (2 B, D); z's first half, in training that of all processes."""
        rows = nn.functional.normalize(z.to(self.queue.dtype), dim=1)
        new = rows[: len(rows) // 2]
        return self.queue[nearest_neighbor(rows, self.queue)], gather_rows(new) if self.training else new
