"""MoCo v1 and v2 (He et al. 2020; Chen et al. 2020): queries against the teacher's keys of the other view and a queue.

    q = unit(encoder(view0))    k = unit(teacher(view1))    loss = -log(exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.queue_j / t)))

In the order of the paper's algorithm 1: the teacher moves, the loss sees the old queue, then the keys are pushed onto it. Batch
normalisation would let an image find its key by the statistics that both share; with shuffled keys (section 3.3) they share none.
"""

from typing import cast

import torch
from torch import Tensor, distributed, nn

from fastssl.checks import FLOATS, check_whole
from fastssl.distributed import gather_rows
from fastssl.functional import moco_loss, queue_push_
from fastssl.momentum import MoCoQueue

from ._checks import check_flags, check_positive, check_widths, given
from ._recompute import once, recomputing
from ._shuffle import ShuffledKeys


class MoCo(ShuffledKeys):
    """MoCo around any encoder: ``MoCo(backbone)(view0, view1)`` is the loss to call ``backward`` on.

    He et al. 2020, https://arxiv.org/abs/1911.05722, equation 1 and algorithm 1; v2: Chen et al. 2020,
    https://arxiv.org/abs/2003.04297.

    ``MoCo(backbone)`` is v1; v2 is ``MoCo(backbone, mlp=True, temperature=0.2)`` with stronger augmentation.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        mlp: whether the head has two layers (v2) or is one linear layer.
        hidden_dim: width of that head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of queries, keys and queue.
        queue_size: number K of keys in the queue, which is in the state dict. It holds random directions until keys have replaced
            them.
        queue_dtype: dtype of the queue, and so of queries, keys and the products of the loss. Under autocast, autocast's own dtype
            (bfloat16) keeps the products on 16-bit matrix units, as the einsum of the MoCo repository does; float32 is exact and,
            on a GPU, several times slower.
        momentum: share of the teacher that is kept at each step.
        final_momentum: share that the momentum reaches over ``total_steps`` along half a cosine. None: the momentum stays, as in
            the papers.
        total_steps: number of steps of the training, where the momentum has a schedule.
        temperature: above 0.
        bn_splits: parts of the batch that the encoders see apart, as several devices would, so that shuffling has an effect on one
            device. B must be at least twice as large.
        shuffle_bn: whether the images are permuted before the teacher and its keys put back in order after it, across all
            processes. This has no effect where a batch is one part in one process.
        symmetric: whether the queries of view 1 are also compared with the keys of view 0. The loss is then the mean of both
            directions, and the keys of both views go onto the queue.

    With several processes the queue takes the keys of all; ``MoCoQueue`` says what to tell DDP about its buffers.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = MoCo(backbone, projection_dim=4, queue_size=16)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
        >>> loss.shape, method.queue.queue.shape, int(method.step)
        (torch.Size([]), torch.Size([4, 16]), 1)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        mlp: bool = False,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        queue_size: int = 65536,
        queue_dtype: torch.dtype = torch.float32,
        momentum: float = 0.999,
        final_momentum: float | None = None,
        total_steps: int | None = None,
        temperature: float = 0.07,
        bn_splits: int = 1,
        shuffle_bn: bool = True,
        symmetric: bool = False,
    ):
        def head(width: int) -> nn.Module:
            if not mlp:
                return nn.Linear(width, projection_dim)
            hidden = hidden_dim or width
            return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, projection_dim))

        check_positive("MoCo", temperature=temperature)
        check_widths("MoCo", projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        check_flags("MoCo", mlp=mlp, shuffle_bn=shuffle_bn, symmetric=symmetric)
        bn_splits = check_whole("MoCo", "bn_splits", bn_splits, 1)
        queue_size = check_whole("MoCo", "queue_size", queue_size, 1)
        if queue_dtype not in FLOATS:
            raise TypeError(f"MoCo: queue_dtype must be float32, bfloat16, float16 or float64, got {queue_dtype}")
        super().__init__(backbone, feature_dim, head, momentum, final_momentum, total_steps)
        self.temperature, self.bn_splits, self.shuffle_bn, self.symmetric = temperature, bn_splits, shuffle_bn, symmetric
        self.queue = MoCoQueue(projection_dim, queue_size, gather_distributed=distributed.is_available(), dtype=queue_dtype)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views. In training mode the teacher moves before, and its keys go onto the queue after.

        Args:
            view0, view1: (B, ...) float, two views of the same B samples; B is at least 2.

        Returns:
            Scalar float32, float64 for a float64 queue.

        Raises:
            TypeError: views of different dtypes or devices.
            ValueError: views of different shapes, or with a B below 2 or below ``2 * bn_splits``.
        """
        self.check_views(view0, view1)
        if len(view0) < 2 * self.bn_splits:
            raise ValueError(
                f"MoCo: bn_splits={self.bn_splits} needs at least {2 * self.bn_splits} images a batch, got {len(view0)}"
            )
        views = (view0, view1) if self.symmetric else (view0,)
        q = torch.cat([self.unit(self.in_parts(self.encoder, view)) for view in views])
        k, new, places, old = once(self, view0, lambda: self.keys_and_places((view1, view0)[: len(views)]))
        queue = self.queue.queue.index_copy(1, places, old) if recomputing() else self.queue.queue
        loss = cast(Tensor, moco_loss(q, k, queue, self.temperature))
        if self.training and not recomputing():
            queue_push_(self.queue.queue, self.queue.queue_ptr, new)
        return loss

    @torch.no_grad()
    def keys_and_places(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Moves the teacher -> keys (N, D) of the views, those of all processes (M, D), which columns of the queue they will take,
        at most K, and what these hold now (D, at most K)."""
        self.move_teacher()
        k = torch.cat([self.keys(view) for view in views])
        new = gather_rows(k) if self.training else k
        queue, first = self.queue.queue, self.queue.queue_ptr
        places = (first + torch.arange(min(len(new), queue.shape[1]), device=queue.device)) % queue.shape[1]
        return k, new, places, queue[:, places]
