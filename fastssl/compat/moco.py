"""Drop-in for ``moco/builder.py`` of facebookresearch/moco (He et al. 2020): its constructor, state keys, returns, order of steps.

It differs from the repository in this: it takes any batch size (the queue wraps), needs no process group and no host sync for the
pointer, and the parameters of the key encoder stay the same objects and storages. ``loss`` gives what the training script logs, and
does not make the (N, 1 + K) logits.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole
from fastssl.distributed import gather_rows, world_size
from fastssl.loss.moco import moco_loss
from fastssl.ops.queue import queue_push_

from ._common import average_parameters, check_share, copy_parameters

__all__ = ["MoCo", "concat_all_gather"]

_OP = "MoCo"


class MoCo(nn.Module):
    """Query encoder, key encoder and queue of keys (He et al. 2020; v2 with ``mlp=True``, Chen et al. 2020).

    Args:
        base_encoder: called as ``base_encoder(num_classes=dim)``, twice; its modules give (N, dim).
        dim: width of the embeddings.
        K: number of keys in the queue.
        m: momentum of the key encoder, the share that is kept, in [0, 1].
        T: temperature, not 0.
        mlp: puts Linear(w, w), ReLU before the last layer, which must be ``.fc``.

    State: ``encoder_q.*``, ``encoder_k.*``, ``queue`` (dim, K), ``queue_ptr`` (1,) int64, as in the MoCo repository.

    Raises:
        TypeError, ValueError: a wrong constructor argument, images of unequal number, or an encoder of another width.

    Examples:
        >>> def net(num_classes):
        ...     return torch.nn.Linear(12, num_classes)
        >>> model = MoCo(net, dim=8, K=32)
        >>> logits, labels = model(torch.randn(4, 12), torch.randn(4, 12))
        >>> logits.shape, model.queue_ptr.item()
        (torch.Size([4, 33]), 4)
        >>> loss, acc1, acc5 = model.loss(torch.randn(4, 12), torch.randn(4, 12))  # the same loss without logits
    """

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        T: float = 0.07,
        mlp: bool = False,
    ):
        super().__init__()
        _check_arguments(base_encoder, dim, K, m, T)
        self.K, self.m, self.T = K, m, T
        self.encoder_q = base_encoder(num_classes=dim)
        self.encoder_k = base_encoder(num_classes=dim)
        if mlp:
            for encoder in (self.encoder_q, self.encoder_k):
                _add_hidden_layer(encoder)
        copy_parameters(_OP, ("encoder_q", "encoder_k"), self.encoder_q, self.encoder_k)
        self.queue: Tensor
        self.queue_ptr: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels, as the MoCo repository returns them for its cross-entropy.

        Args:
            im_q: (N, ...), the view that the query encoder sees.
            im_k: (N, ...), the view that the key encoder sees.

        Returns:
            logits (N, 1 + K), the positive first, divided by T; labels (N,) int64, all 0.
        """
        q, k = self._features(im_q, im_k)
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone())  # autograd saves it, and the push below overwrites
        logits = torch.cat([positive, negative], dim=1) / self.T
        self._dequeue_and_enqueue(k)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def loss(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """im_q, im_k (N, ...) -> cross-entropy of ``forward``, and its acc@1 and acc@5 (1,) in percent; no logits are made.

        A row counts in acc@k where fewer than k keys of the queue are more similar than its own. ``DistributedDataParallel``
        synchronises the gradients of ``forward`` only; to train under it, set ``model.forward = model.loss`` before wrapping.
        """
        q, k = self._features(im_q, im_k)
        loss, stats = moco_loss(q, k, self.queue, self.T, return_stats=True)
        self._dequeue_and_enqueue(k)
        acc1, acc5 = ((stats.rank < top).float().sum(0, keepdim=True) * (100.0 / len(q)) for top in (1, 5))
        return loss, acc1, acc5

    def _features(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Unit queries and keys (N, dim); moves the key encoder in between, as the repository does."""
        if len(im_q) != len(im_k) or len(im_q) == 0:
            raise ValueError(f"{_OP}: im_q and im_k must have as many images, at least one, got {len(im_q)} and {len(im_k)}")
        q = self.encoder_q(im_q)
        if q.shape != (len(im_q), len(self.queue)):
            raise ValueError(f"{_OP}: encoder_q must give {(len(im_q), len(self.queue))}, (N, dim), got {tuple(q.shape)}")
        q = F.normalize(q, dim=1)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            im_k, back = self._batch_shuffle_ddp(im_k)
            k = F.normalize(self.encoder_k(im_k), dim=1)
            return q, self._batch_unshuffle_ddp(k, back)

    @torch.no_grad()
    def _momentum_update_key_encoder(self) -> None:
        """k <- m k + (1 - m) q for all parameters in one launch, in place (eq. 2); batch statistics are left to the forward."""
        average_parameters(_OP, ("encoder_q", "encoder_k"), self.encoder_q, self.encoder_k, self.m)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """Keys (N, dim) of all ranks onto the queue, in rank order, any N."""
        queue_push_(self.queue, self.queue_ptr, concat_all_gather(keys), layout="dk", overflow="wrap")

    @torch.no_grad()
    def _batch_shuffle_ddp(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Shuffle BN (section 3.3): this rank's N rows of all ranks' rows in a common random order, and the order that undoes it.

        One process has nothing to shuffle with: x and None.
        """
        if world_size() == 1:
            return x, None
        rows = concat_all_gather(x)
        order = torch.randperm(len(rows)).to(x.device)
        dist.broadcast(order, src=0)
        return _share_of_rank(rows, order), order.argsort()

    @torch.no_grad()
    def _batch_unshuffle_ddp(self, x: Tensor, idx_unshuffle: Tensor | None) -> Tensor:
        """x (N, ...) as ``_batch_shuffle_ddp`` ordered it -> rows of this rank's own images."""
        return x if idx_unshuffle is None else _share_of_rank(concat_all_gather(x), idx_unshuffle)


@torch.no_grad()
def concat_all_gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in the order of the ranks, without gradient.

    Args:
        tensor: (N, ...). Every rank must have the same number of rows, as in the repository.

    Returns:
        (ranks N, ...); in one process the tensor itself, detached.

    Examples:
        >>> concat_all_gather(torch.ones(4, 2)).shape  # in one process
        torch.Size([4, 2])
    """
    return gather_rows(tensor, even=True)


def _share_of_rank(rows: Tensor, order: Tensor) -> Tensor:
    return rows[order.view(world_size(), -1)[dist.get_rank()]]


def _check_arguments(base_encoder, dim, K, m, T) -> None:
    if not callable(base_encoder):
        raise TypeError(f"{_OP}: base_encoder must be callable with num_classes=dim, got {type(base_encoder).__name__}")
    for name, value in (("dim", dim), ("K", K)):
        check_whole(_OP, name, value, 1)
    check_share(_OP, "m", m)
    check_number(_OP, "T", T)
    if T == 0:
        raise ValueError(f"{_OP}: T must not be 0")


def _add_hidden_layer(encoder: nn.Module) -> None:
    last = getattr(encoder, "fc", None)
    if not isinstance(last, nn.Linear):
        raise ValueError(f"{_OP}: mlp=True needs an encoder whose last layer is a Linear named fc, got {type(last).__name__}")
    encoder.fc = nn.Sequential(nn.Linear(last.in_features, last.in_features), nn.ReLU(), last)
