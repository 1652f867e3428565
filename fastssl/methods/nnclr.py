"""NNCLR (Dwibedi et al. 2021): the positive is not the other view but its nearest neighbour in a queue of embeddings.

    z = head(backbone(view))    p = predictor(z)    n = queue[argmax_q <z, q>]    loss = (InfoNCE(n0, p1) + InfoNCE(n1, p0)) / 2

InfoNCE's softmax runs over the predictions of the batch. No gradient flows to the neighbours; after the loss, the embeddings of
the first views take the place of the oldest ones in the queue.
"""

import torch
from torch import Tensor, nn

from fastssl.functional import info_nce, nearest_neighbor, queue_push_

from ._common import ImageMethod, ProjectionHead, random_unit_rows


class NNCLR(ImageMethod):
    """NNCLR around any image encoder: ``NNCLR(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    Args:
        backbone: images (B, 3, H, W) -> features (B, feature_dim), or (B, feature_dim, 1, 1).
        feature_dim: width of the features; by default that of a probe image, or ``backbone.num_features``.
        hidden_dim: width of the projection head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of embeddings, predictions and queue.
        prediction_hidden_dim: width of the predictor's hidden layer; by default that of the projection head's.
        queue_size: K embeddings, float32, in the state dict; random directions until pushes have replaced them.
        temperature: of InfoNCE, above 0.

    With several processes the queue holds the first one's embeddings (DDP hands its buffers round).
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
    ):
        super().__init__(backbone, feature_dim, temperature)
        if not (isinstance(queue_size, int) and queue_size >= 1):
            raise ValueError(f"NNCLR: queue_size must be a whole number of at least 1, got {queue_size}")
        hidden = hidden_dim or self.feature_dim
        self.projection_head = ProjectionHead(self.feature_dim, hidden, projection_dim)
        self.prediction_head = ProjectionHead(projection_dim, prediction_hidden_dim or hidden, projection_dim)
        self.queue: Tensor
        self.queue_pointer: Tensor
        self.register_buffer("queue", random_unit_rows(queue_size, projection_dim))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """Two views (B, 3, H, W) of the same B pictures, B >= 2 -> loss, scalar float32. Training pushes onto the queue."""
        self.check_views(view0, view1)
        z = self.projection_head(self.embed(torch.cat([view0, view1])))
        p0, p1 = self.prediction_head(z).chunk(2)
        rows = nn.functional.normalize(z.detach().to(self.queue.dtype), dim=1)
        n0, n1 = self.queue[nearest_neighbor(rows, self.queue)].to(p0.dtype).chunk(2)
        loss = 0.5 * (info_nce(n0, p1, temperature=self.temperature) + info_nce(n1, p0, temperature=self.temperature))
        if self.training:
            queue_push_(self.queue, self.queue_pointer, rows[: len(view0)], layout="kd")
        return loss
