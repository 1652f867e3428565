"""Losses that one call of C++ checks, computes and records as one node of autograd, for plain tensors on a CPU.

At small batches the checks, the dispatcher and the nodes of Python take as long as the kernels. ``csrc/python/losses.cpp``
says None where it sees anything but the plain case: other devices, subclasses and modes, learned temperatures, and all that must
be refused. The loss then goes on in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastssl.ops._register import _C

from .local_rows import warn_local_rows


def _in_one_call(name: str, op: str, *arguments) -> Tensor | None:
    if torch.compiler.is_compiling():
        return None
    call: Callable[..., Any] | None = getattr(_C, name, None)
    loss = None if call is None else call(op, *arguments)
    if loss is not None:
        warn_local_rows(op, stacklevel=5)
    return loss


def nt_xent_in_one_call(op: str, z0: Any, z1: Any, temperature: Any, mean: bool) -> Tensor | None:
    """NT-Xent of the 2B rows of two views (B, D), brought to unit length: their mean or sum, or None."""
    return _in_one_call("nt_xent", op, z0, z1, temperature, mean)


Defaults = tuple[tuple[Any, tuple], ...]  # a default, and what must be that


def _hold(others: Defaults) -> bool:
    """Whether all values are their default, and of its type: False is no label smoothing of 0.0."""
    return all(type(value) is type(default) and value == default for default, values in others for value in values)


def sup_con_in_one_call(
    op: str, features: Any, labels: Any, temperature: Any, normalize: Any, reduction: Any, others: Defaults
) -> Tensor | None:
    """SupCon of features (B, V, D), all views of which are anchors: the mean or the sum over the anchors, or None.

    None too where one of the ``others`` is not at its default.
    """
    if not _hold(others) or not isinstance(normalize, bool):
        return None
    if not isinstance(reduction, str) or reduction not in ("mean", "sum"):
        return None
    return _in_one_call("sup_con", op, features, labels, temperature, normalize, reduction == "mean")


def info_nce_in_one_call(
    op: str, query: Any, key: Any, temperature: Any, normalize: Any, symmetric: Any, reduction: str, others: Defaults
) -> Tensor | None:
    """InfoNCE of queries and keys (N, D), whose negatives are those of the batch: the mean or the sum over the rows, or None.

    None too where one of the ``others`` is not at its default.
    """
    if not _hold(others) or not isinstance(normalize, bool) or not isinstance(symmetric, bool) or reduction == "none":
        return None
    return _in_one_call("info_nce", op, query, key, temperature, normalize, symmetric, reduction == "mean")


def clip_in_one_call(op: str, image: Any, text: Any, logit_scale: Any, normalize: Any, others: Defaults) -> Tensor | None:
    """CLIP's loss of pairs (N, D), or None; also where one of the ``others`` is not at its default."""
    if not _hold(others) or not isinstance(normalize, bool):
        return None
    return _in_one_call("clip", op, image, text, logit_scale, normalize)
