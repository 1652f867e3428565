"""``forward`` of tevatron's dense retrievers (``tevatron.retriever.modeling``), whose loss needs no matrix of scores.

    EncoderModel.forward = forward             fastssl.patch("tevatron")

    loss = W mean_i -log softmax_j(<q_i, p_j> / temperature)_{i G}          i over the queries of all W processes

Every process computes the mean over the rows of all, of which its own carry a gradient; the factor W makes up for
DistributedDataParallel's mean, as there. The output's ``scores`` are computed when they are first read.
"""

import functools
import sys
from typing import Any

import torch

from ._late import late_output, with_late
from ._retrieval import cross_entropy

__all__ = ["forward"]


def forward(self, query: dict | None = None, passage: dict | None = None) -> Any:
    """query, passage (inputs of the encoder) -> the library's ``EncoderOutput``; in training its loss is float32, or float64.

    A model with a ``compute_similarity`` or ``compute_loss`` of its own has its scores made, and its loss computed from them. So do
    representations that ours refuses.
    """
    home = next(cls for cls in type(self).__mro__ if cls.__name__ == "EncoderModel").__module__
    output = sys.modules[home].EncoderOutput
    q_reps = self.encode_query(query) if query else None
    p_reps = self.encode_passage(passage) if passage else None
    if q_reps is None or p_reps is None:
        return output(q_reps=q_reps, p_reps=p_reps)
    if not self.training:
        return output(scores=self.compute_similarity(q_reps, p_reps), q_reps=q_reps, p_reps=p_reps)
    if self.is_ddp:
        q_reps, p_reps = self._dist_gather_tensor(q_reps), self._dist_gather_tensor(p_reps)
    factor = self.world_size if self.is_ddp else 1

    def scores() -> tuple[torch.Tensor]:
        return (self.compute_similarity(q_reps, p_reps).view(len(q_reps), -1),)

    if all(getattr(type(self), name).__module__ == home for name in ("compute_similarity", "compute_loss")):
        try:
            loss = cross_entropy("EncoderModel", q_reps, p_reps, 1.0 / self.temperature, names=("q_reps", "p_reps")) * factor
        except (TypeError, ValueError, NotImplementedError):
            pass
        else:
            return with_late(_late(output), scores, q_reps, loss=loss, q_reps=q_reps, p_reps=p_reps)
    (made,) = scores()
    target = torch.arange(len(q_reps), device=made.device) * (len(p_reps) // len(q_reps))
    return output(loss=self.compute_loss(made / self.temperature, target) * factor, scores=made, q_reps=q_reps, p_reps=p_reps)


@functools.cache
def _late(output: type) -> type:
    return late_output(output, ("scores",), __name__)
