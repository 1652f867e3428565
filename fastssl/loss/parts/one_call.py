"""Losses that one call of C++ checks, computes and records as one node of autograd, for plain tensors on a CPU.

At small batches the checks, the dispatcher and the nodes of Python take as long as the kernels. ``csrc/python/losses.cpp``
says None where it sees anything but the plain case: other devices, 16-bit rows, subclasses and modes, learned temperatures, and all
that must be refused. The loss then goes on in Python.
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
        warn_local_rows(op)
    return loss


def nt_xent_in_one_call(op: str, z0: Any, z1: Any, temperature: Any, mean: bool) -> Tensor | None:
    """NT-Xent of the 2B rows of two views (B, D), brought to unit length: their mean or sum, or None."""
    return _in_one_call("nt_xent", op, z0, z1, temperature, mean)


def sup_con_in_one_call(
    op: str, features: Any, labels: Any, temperature: Any, normalize: Any, contrast_mode: Any, reduction: Any, others: tuple
) -> Tensor | None:
    """SupCon of features (B, V, D), all views of which are anchors: the mean or the sum over the anchors, or None.

    None too where one of the ``others`` is given.
    """
    choices = (isinstance(choice, str) for choice in (contrast_mode, reduction))
    if any(other is not None for other in others) or not isinstance(normalize, bool) or not all(choices):
        return None
    if contrast_mode != "all" or reduction not in ("mean", "sum"):
        return None
    return _in_one_call("sup_con", op, features, labels, temperature, normalize, reduction == "mean")
