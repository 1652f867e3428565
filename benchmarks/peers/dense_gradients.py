"""Skip-gram with gradients as large as the tables: fastssl's ``negative_sampling``, and torch's fused Adam.

A row that is not in the batch gets a gradient of 0, which moves nothing in the first step: that is what is compared. In later steps
Adam moves every row whose moments are not 0. Its eps stands beside a corrected root, that of ``SparseAdam`` beside a plain one, so
it is scaled here to mean the same in the first step.
"""

import torch
from torch import nn

from fastssl.testing.words import NAMES, training

from . import Peer

BETA2 = 0.999


def _words(lr: float, eps: float):
    from fastssl.functional import negative_sampling

    def bind(state):
        words, contexts = (nn.Embedding.from_pretrained(state[name], freeze=False) for name in NAMES[:2])

        def loss():
            rows = words(state["input_ids"]), contexts(state["target_ids"])
            return negative_sampling(*rows, contexts.weight, negative_index=state["negative_ids"], reduction="sum")

        tables = [words.weight, contexts.weight]
        return training(state, loss, torch.optim.Adam(tables, lr, (0.9, BETA2), eps / (1 - BETA2) ** 0.5, fused=True))

    return bind


PEER = Peer("dense_gradients", {"word_pairs": _words})
