"""The row of negative sampling over tables of words."""

import torch.nn.functional as F

from fastssl import functional

from .table import Case, Maker


def _words(m: Maker) -> dict:
    width, pairs, words = m.choice((1, 5, 17)), m.choice((1, 6)), m.choice((2, 9))
    shape = m.choice(((pairs,), (pairs, 1), (pairs, 3)))
    return {
        "inputs": m.leaf(words, width),
        "outputs": m.leaf(words, width),
        "input_ids": m.integers(-1 if len(shape) == 2 else 0, words, *shape),
        "target_ids": m.integers(0, words, pairs),
        "negative_ids": m.integers(-1, words, pairs, m.choice((1, 4))),
        "sparse": False,
        "reduction": m.choice(("mean", "sum", "none")),
    }


def _truth(inputs, outputs, input_ids, target_ids, negative_ids, sparse=True, reduction="mean"):
    input_ids, target_ids, negative_ids = (ids.long() for ids in (input_ids, target_ids, negative_ids))
    ids = input_ids if input_ids.ndim == 2 else input_ids[:, None]
    there = (ids >= 0).to(inputs.dtype)[..., None]
    h = (inputs[ids.clamp_min(0)] * there).sum(1) / there.sum(1).clamp_min(1)
    positive = F.softplus(-(h * outputs[target_ids]).sum(1))
    noise = F.softplus((h[:, None] * outputs[negative_ids.clamp_min(0)]).sum(2))
    loss = positive + noise.where(negative_ids >= 0, 0.0).sum(1)
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


CASES = [Case("word_pairs", functional.word_pairs, _words, _truth)]
