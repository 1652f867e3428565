"""``__call__`` of ``InfonceLoss`` of ms-swift 4.6 (``swift.loss.embedding``), which needs no matrix of similarities.

    InfonceLoss.__call__ = call             fastssl.patch("swift")

    loss = mean_i -log softmax_j(<q_i, d_j> / temperature)_{i G}        over the queries and documents of all processes

Its options are environment variables, as there: ``INFONCE_TEMPERATURE``, ``INFONCE_USE_BATCH``, ``INFONCE_HARD_NEGATIVES``,
``INFONCE_MASK_FAKE_NEGATIVE``, ``INFONCE_FAKE_NEG_MARGIN``, ``INFONCE_INCLUDE_QQ``, ``INFONCE_INCLUDE_DD``. Every process computes
the mean over the rows of all, of which its own carry a gradient, and multiplies the gradient, not the loss, by the number W of
processes: DistributedDataParallel's mean is then the gradient of one process, as there. Versions before 4.6 had 1 / W of it;
``fastssl.patch`` refuses them.
"""

import os
import sys
from typing import Any, cast

import torch
from torch import Tensor

from fastssl.distributed import gather_rows, world_size
from fastssl.loss.info_nce import info_nce
from fastssl.loss.parts.local_rows import rows_of_all

from ._retrieval import gather_own

__all__ = ["call"]

_OP = "InfonceLoss"


def call(self, outputs: dict[str, Tensor], labels: Tensor, **kwargs: Any) -> Tensor:
    """outputs["last_hidden_state"] (R, D), labels (R - B,) -> the loss (), float32 (float64 for float64 input).

    The rows are B samples of an anchor, its positive and its negatives; labels are 1 for positives and 0 for negatives. Served are
    samples of equally many negatives, or of at least ``INFONCE_HARD_NEGATIVES``, with negatives from the batch. Everything else
    (Megatron, sequence parallelism) is refused; after ``fastssl.patch`` the library's own code runs then.

    TypeError, ValueError: wrong types, dtypes or shapes. NotImplementedError: what is not served.
    """
    parallel = sys.modules.get("swift.sequence_parallel")
    split = getattr(getattr(parallel, "sequence_parallel", None), "dp_group", None) is not None
    margin = float(os.environ.get("INFONCE_FAKE_NEG_MARGIN", "0.1"))
    if not _flag("INFONCE_USE_BATCH", True) or self.is_megatron or split or margin < 0:
        refused = "a negative margin, Megatron, sequence parallelism, and losses without negatives from the batch"
        raise NotImplementedError(f"{_OP}: {refused} are not supported")
    rows = outputs["last_hidden_state"]
    if world_size() > 1:
        rows, labels = gather_own(rows, even=False), gather_rows(labels)
    query, passages, group = _samples(rows, labels)
    with rows_of_all():
        out = info_nce(
            query,
            passages,
            temperature=float(os.environ.get("INFONCE_TEMPERATURE", "0.1")),
            normalize=False,
            target=group,
            margin=margin if _flag("INFONCE_MASK_FAKE_NEGATIVE") else None,
            query_query=_flag("INFONCE_INCLUDE_QQ"),
            doc_doc=_flag("INFONCE_INCLUDE_DD"),
        )
    loss = cast("Tensor", out)  # without statistics
    value, world = loss.detach(), world_size()
    return value + world * (loss - value) if world > 1 else loss


def _flag(variable: str, default: bool = False) -> bool:
    value = os.environ.get(variable, str(default)).lower()
    if value not in ("y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0"):
        raise ValueError(f"{_OP}: {variable} must be true or false, got {value}")
    return value in ("y", "yes", "t", "true", "on", "1")


def _samples(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Anchors (B, D), documents (B G, D) with each positive before its negatives, and G. The host reads the labels, as there."""
    starts = torch.nonzero(labels).flatten().tolist()
    if not starts or starts[0] != 0 or len(rows) != len(labels) + len(starts):
        raise NotImplementedError(f"{_OP}: labels must be 1 for each positive and 0 for each negative behind it")
    sizes = [end - start for start, end in zip(starts, [*starts[1:], len(labels)], strict=True)]
    group, given = sizes[0], os.environ.get("INFONCE_HARD_NEGATIVES")
    if given is not None:
        group = int(given) + 1
    if min(sizes) < group or (given is None and max(sizes) > group):
        raise NotImplementedError(f"{_OP}: each sample must have as many negatives, got {sorted({size - 1 for size in sizes})}")
    anchors = torch.tensor([start + k for k, start in enumerate(starts)], device=rows.device)
    documents = anchors[:, None] + 1 + torch.arange(group, device=rows.device)
    return rows[anchors], rows[documents.flatten()], group
