"""Methods for FlagEmbedding's (1.4) embedding models, whose loss over passages in the batch needs no matrix of scores.

    AbsEmbedderModel._compute_in_batch_neg_loss = compute_in_batch_neg_loss             fastssl.patch("FlagEmbedding")
    AbsEmbedderModel._compute_cross_device_neg_loss = compute_cross_device_neg_loss

    loss = mean_i -log softmax_j(<q_i, p_j> / temperature)_{i G}          q (B, D), p (B G, D), the first of each G the positive

Served are models whose scores and loss are the library's inner product and cross-entropy, and whose ``forward``, which throws the
scores away, is the library's. Distillation, other scores and BGE-M3 are refused before anything is computed: after
``fastssl.patch`` the library's own method runs then.
"""

from typing import Any

from torch import Tensor

from ._retrieval import cross_entropy, gather_own

__all__ = ["compute_cross_device_neg_loss", "compute_in_batch_neg_loss"]

#: The methods that are computed here, and where the library defines them.
PLAIN = {
    "compute_score": "FlagEmbedding.finetune.",
    "compute_loss": "FlagEmbedding.finetune.",
    "_compute_similarity": "FlagEmbedding.finetune.",
    "forward": "FlagEmbedding.abc.",
}


def compute_in_batch_neg_loss(
    self, q_reps: Tensor, p_reps: Tensor, teacher_targets: Any = None, compute_score_func: Any = None, **kwargs
) -> tuple[None, Tensor]:
    """q_reps (B, D), p_reps (B G, D) -> (None, loss ()), float32 (float64 for float64); None stands where the scores are there.

    TypeError, ValueError: wrong types, dtypes, shapes or devices. NotImplementedError: what is not served.
    """
    _check(self, teacher_targets, compute_score_func)
    return None, _loss(self, q_reps, p_reps)


def compute_cross_device_neg_loss(
    self, q_reps: Tensor, p_reps: Tensor, teacher_targets: Any = None, compute_score_func: Any = None, **kwargs
) -> tuple[None, Tensor]:
    """The same over the rows of all processes, as many in each, of which this process's own carry a gradient.

    Under DistributedDataParallel's mean the encoder gets 1 / W of the gradient of one process, as there.

    TypeError, ValueError: wrong types, dtypes, shapes or devices. NotImplementedError: what is not served.
    """
    _check(self, teacher_targets, compute_score_func)
    return None, _loss(self, gather_own(q_reps), gather_own(p_reps))


def _check(model, teacher_targets: Any, compute_score_func: Any) -> None:
    places = {name: getattr(getattr(type(model), name, None), "__module__", "") for name in PLAIN}
    other = [name for name, place in places.items() if not place.startswith(PLAIN[name])]
    if teacher_targets is not None or compute_score_func is not None or other:
        raise NotImplementedError(f"FlagEmbedding: teacher_targets, compute_score_func or own {', '.join(other)} are not supported")


def _loss(model, q_reps: Tensor, p_reps: Tensor) -> Tensor:
    return cross_entropy("FlagEmbedding", q_reps, p_reps, 1.0 / model.temperature, names=("q_reps", "p_reps"))
