"""A drop-in for ``contrastors.loss.clip_loss`` of nomic-ai/contrastors, at its scale."""

from typing import Any

import torch
from torch import Tensor

from fastssl.distributed import gather_rows_with_grad, world_size

from ._retrieval import check_sides, cross_entropy, stride_of

__all__ = ["clip_loss"]

_NAMES = ("query", "document")


def clip_loss(
    query: Tensor,
    document: Tensor,
    logit_scale: Any,
    step: int | None = None,
    gather_enabled: bool = False,
    tracker: Any = None,
    dataset: str = "",
    bidirectional: bool = False,
) -> Tensor:
    """Cross-entropy of queries over documents, without the N x M similarities, times the number of processes, as there.

    Query i belongs to document ``i (M // N)`` of this process. The factor makes the gradient under DistributedDataParallel's mean W
    times that of one process; ``fastssl.functional.info_nce`` with ``group=`` has none.

    Args:
        query: (N, D), of unit length as contrastors' models leave them.
        document: (M, D), M a multiple of N.
        logit_scale: a module that multiplies what it is given, as contrastors' does; or that number or one-element tensor.
        step: of ``tracker``, with which the library's own function runs.
        gather_enabled: the documents of all processes, as many in each, with gradient through the gather.
        tracker: refused: the accuracy that it logs needs the similarities.
        dataset: of ``tracker``.
        bidirectional: the sum of both directions, without the factor; for M = N after the gather.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device.
        NotImplementedError: a ``tracker``, or documents of another number than queries with ``bidirectional``; after
            ``fastssl.patch`` the library's own function runs then.

    Examples:
        >>> query, document = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8)
        >>> clip_loss(query, document, 20.0).backward()
        >>> query.grad.shape
        torch.Size([4, 8])
    """
    op = "clip_loss"
    if tracker is not None:
        raise NotImplementedError(f"{op}: tracker must be None, since it logs an accuracy that needs the similarities")
    if isinstance(document, Tensor) and isinstance(query, Tensor):
        document = document.to(query.dtype)
    check_sides(op, query, document, _NAMES)
    world = world_size()
    if bidirectional and (len(query) != len(document) or (gather_enabled and world > 1)):
        raise NotImplementedError(f"{op}: bidirectional=True needs as many documents as queries")
    stride, first = stride_of(op, query, document, _NAMES), 0
    scale = logit_scale(query.new_ones(())) if callable(logit_scale) else logit_scale
    if gather_enabled:
        document, first = gather_rows_with_grad(document)
    target = torch.arange(len(query), device=query.device) * stride + first
    loss = cross_entropy(op, query, document, scale, target, names=_NAMES)
    if bidirectional:
        return loss + cross_entropy(op, document, query, scale, target, names=_NAMES)
    return loss * world
