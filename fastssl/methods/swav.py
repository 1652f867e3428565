"""SwAV (Caron et al. 2020): each crop is to predict which prototypes Sinkhorn assigns to another, large crop of the same image.

    z = unit(head(encoder(crop)))    s = z C^T    q = Sinkhorn(s of the large crop / 0.05)
    loss = mean over pairs of different crops of -sum_k q_k log softmax(s / 0.1)_k

Sinkhorn uses all prototypes equally often in a batch, or in a batch and the queue of older embeddings z in front of it. No gradient
flows to the assignments, and the prototypes C are brought to unit length before each step.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_whole
from fastssl.distributed import Ranks
from fastssl.functional import dino_loss, sinkhorn

from ._checks import check_positive, check_widths, given
from ._common import ProjectionHead
from ._crop_queue import GLOBAL, CropQueue
from ._crops import Prototypes, began, check_crops, check_part, through
from ._recompute import once
from ._teacher import EncoderMethod


class SwAV(CropQueue, EncoderMethod):
    """SwAV around any encoder: ``SwAV(backbone)(global_crops, local_crops)`` is the loss to call ``backward`` on.

    Caron et al. 2020, https://arxiv.org/abs/2006.09882, equations 1 to 3.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim), for crops of all sizes. It may also
            return maps, a mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        prototypes: number K of prototypes; the paper's is 3000.
        hidden_dim: width of the projection head's hidden layer; by default ``feature_dim``. The paper's is 2048.
        projection_dim: width D of embeddings and prototypes.
        temperature: of the predictions, above 0.
        epsilon: what divides the scores of the assignments, above 0.
        iterations: passes of Sinkhorn's algorithm.
        queue_size: number Q of older embeddings of each of two global crops that the assignments are balanced with; 0 for none.
        queue_start: share of ``total_steps`` after which they are; not before the queue is full.
        frozen: share of ``total_steps`` in which the gradient of the prototypes is 0.
        total_steps: number of steps of the training. None: queue and prototypes take part from the first step.

    With several processes assignments and loss are those of one process with the joined batch. The queue takes the embeddings of
    all, in the order of the ranks, and so is the same in each; ``MoCoQueue`` says what to tell DDP about its buffers.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> method = SwAV(backbone, prototypes=12, projection_dim=4, queue_size=16)
        >>> loss = method([torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8)], [torch.rand(5, 3, 4, 4)])
        >>> loss.shape, int(method.queue_pointer)
        (torch.Size([]), 5)
    """

    joins_processes = True

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        prototypes: int = 3000,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        queue_start: float = 0.15,
        frozen: float = 0.01,
        total_steps: int | None = None,
    ):
        optional = given(hidden_dim=hidden_dim, total_steps=total_steps)
        check_positive("SwAV", temperature=temperature, epsilon=epsilon)
        check_widths("SwAV", prototypes=prototypes, projection_dim=projection_dim, iterations=iterations, **optional)
        queue_size = check_whole("SwAV", "queue_size", queue_size, 0)
        check_part("SwAV", queue_start=queue_start, frozen=frozen)
        super().__init__(backbone, feature_dim, lambda width: ProjectionHead(width, hidden_dim or width, projection_dim))
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start, self.frozen, self.total_steps = queue_start, frozen, total_steps
        self.prototypes = Prototypes(projection_dim, prototypes, unit=False)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.add_queue(queue_size, projection_dim)

    def forward(self, global_crops: Sequence[Tensor], local_crops: Sequence[Tensor] = ()) -> Tensor:
        """The loss of several crops of the same samples. In training mode the embeddings of the global ones go onto the queue.

        Args:
            global_crops: T tensors (B, ...) float of one shape, which are assigned to prototypes; T and B are at least 2, and T is
                2 where there is a queue.
            local_crops: tensors (B, ...) float, which only predict. Neighbours of one shape are encoded in one call.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over all pairs of a crop and another, assigned crop.

        Raises:
            TypeError: no lists of tensors, or crops of different dtypes or devices.
            ValueError: crops of different samples, fewer than two global crops, more than two with a queue, or a B below 2.
        """
        crops = check_crops("SwAV", global_crops, local_crops)
        assigned, batch = len(global_crops), len(crops[0])
        if self.queue is not None and assigned != GLOBAL:
            raise ValueError(f"SwAV: global_crops must be {GLOBAL} where there is a queue, got {assigned}")
        z = F.normalize(self.encoder.head(through(self.encoder.features, crops)), dim=1)
        potential, learns = once(self, crops[0], lambda: self.assign(z.detach()[: assigned * batch].view(assigned, batch, -1)))
        scores = self.prototypes(z, learns).view(len(crops), batch, -1)
        temperatures: dict[str, Any] = {"student_temperature": self.temperature, "teacher_temperature": self.epsilon}
        # swav_loss with the potentials from before the queue has moved
        return dino_loss(scores, scores.detach()[:assigned], potential=potential, group=Ranks(), **temperatures)

    @torch.no_grad()
    def assign(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """z (T, B, D) of the global crops -> Sinkhorn's potentials (T, 1, K), and 0 or 1 for frozen or learning prototypes.

        In training mode the prototypes get unit length before, and z goes onto the queue after.
        """
        learns, uses = (began(self.step, self.total_steps, share) for share in (self.frozen, self.queue_start))
        if self.training:
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
            self.step.add_(1)
        potential = self.balanced(z)
        if self.queue is not None:
            use = self.full() if uses is None else self.full() & uses.bool()
            potential = torch.where(use, self.balanced(torch.cat([self.older(z), z], 1)), potential)
            if self.training:
                self.push(z)
        return potential, learns

    def balanced(self, z: Tensor) -> Tensor:
        """z (T, N, D) -> the potentials (T, 1, K) with which the N rows of each crop use all prototypes equally."""
        scores = F.linear(z, self.prototypes.weight.to(z.dtype))
        return sinkhorn(scores, self.epsilon, self.iterations, separate=0, group=Ranks())
