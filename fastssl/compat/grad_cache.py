"""Drop-ins for ``grad_cache.loss`` of GradCache: the losses that its loss slot takes, of representations (N, D) and (M, D).

    GradCache(models, chunk_sizes, loss_fn=SimpleContrastiveLoss(n_hard_negatives=1))

The slot takes any ``(x, y) -> scalar``, so ``fastssl.functional.info_nce`` and ``clip_loss`` fit too.
"""

import torch
from torch import Tensor

from fastssl.checks import check_whole
from fastssl.distributed import world_size

from ._retrieval import check_sides, cross_entropy, gather_own

__all__ = ["DistributedContrastiveLoss", "SimpleContrastiveLoss"]


class SimpleContrastiveLoss:
    """Cross-entropy of x over y with the target i (n_hard_negatives + 1), without the (N, M) logits; no rows are normalised.

    Args:
        n_hard_negatives: rows of y between two positives.

    Raises:
        TypeError, ValueError: no whole number of at least 0.

    Examples:
        >>> x, y = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8)
        >>> SimpleContrastiveLoss(n_hard_negatives=1)(x, y).backward()
        >>> x.grad.shape
        torch.Size([4, 8])
    """

    def __init__(self, n_hard_negatives: int = 0):
        self.target_per_qry = check_whole(type(self).__name__, "n_hard_negatives", n_hard_negatives, 0) + 1

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss, float32 (float64 for float64 input).

        Args:
            x: (N, D) float32, bfloat16, float16 or float64.
            y: (M, D), dtype and device of ``x``.
            target: (N,) integers, the row of y that belongs to each row of x.
            reduction: "mean", "sum", or "none" for the losses (N,).

        Raises:
            TypeError, ValueError: wrong type, dtype, shape, device or reduction.
        """
        op = type(self).__name__
        check_sides(op, x, y, ("x", "y"))
        if target is None and len(x) * self.target_per_qry != len(y):
            raise ValueError(f"{op}: y must have {self.target_per_qry} rows for each of {len(x)} rows of x, got {len(y)}")
        return cross_entropy(op, x, y, 1.0, target, reduction, ("x", "y"))


class DistributedContrastiveLoss(SimpleContrastiveLoss):
    """The same of the rows of all processes, at GradCache's scale: every process computes the mean over all rows.

    Only its own rows carry a gradient, so that under DistributedDataParallel's mean the encoder gets 1 / W of the gradient of one
    process; GradCache's README multiplies the loss by W for that reason. ``info_nce`` with ``group=`` needs no such factor.

    Args:
        n_hard_negatives: rows of y between two positives.

    Raises:
        AssertionError: there is no process group, as there.

    Examples:
        >>> DistributedContrastiveLoss()
        Traceback (most recent call last):
        AssertionError: DistributedContrastiveLoss: torch.distributed is not initialized
    """

    def __init__(self, n_hard_negatives: int = 0):
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise AssertionError("DistributedContrastiveLoss: torch.distributed is not initialized")
        super().__init__(n_hard_negatives=n_hard_negatives)
        self.word_size, self.rank = world_size(), torch.distributed.get_rank()  # "word", as the attribute is called there

    def __call__(self, x: Tensor, y: Tensor, **kwargs) -> Tensor:  # type: ignore[override]
        """``x`` (N, D), ``y`` (M, D) of this process, as many rows in each; ``target`` and ``reduction`` are of all rows."""
        return super().__call__(self.gather_tensor(x), self.gather_tensor(y), **kwargs)

    def gather_tensor(self, t: Tensor) -> Tensor:
        """The rows of all processes, of which this process's own carry a gradient."""
        return gather_own(t)
