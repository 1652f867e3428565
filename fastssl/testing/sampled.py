"""InfoNCE over sampled negatives: inputs, the eager form, and the step that is measured.

The eager form is that of transformers' ``Wav2Vec2ForPreTraining``: the rows of all negatives, their cosines, a cross-entropy.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional
from fastssl.checks import accumulator_dtype
from fastssl.testing.masked_updates import LEAVES, Given, Results, forward_backward
from fastssl.testing.updates import State, UpdateCase

SHIFTS = (1, 2, 2, 3, 5, 8, 13)  # from the positive to the negatives of the cases; one comes twice


def sampled_info_nce(query, keys, positive_index, negative_index, *, temperature=0.1, reduction="mean") -> Tensor:
    """The rows (M, J, D), gathered."""
    c, q = query.to(accumulator_dtype(query)), keys.to(accumulator_dtype(keys))
    index = torch.cat([positive_index[:, None].long(), negative_index.long()], 1)
    rows = q[index]
    logits = torch.cosine_similarity(c[:, None], rows, dim=2) / temperature
    equal = (rows[:, 1:] == rows[:, :1]).all(2)
    logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(equal, -torch.inf)], 1)
    return F.cross_entropy(logits, index.new_zeros(len(index)), reduction=reduction)


def tables(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (M, K, D): query (M, D), keys (K, D)."""
    m, k, width = shape
    rows = torch.randn((m + k, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)
    return {"query": rows[:m].clone(), "keys": rows[m:].clone()}


def with_index(call):
    """The call with a positive and negatives for each query, some of which are the positive itself where there are few keys."""

    def run(query, keys):
        positive = torch.arange(len(query), device=query.device) % len(keys)
        negatives = (positive[:, None] + torch.tensor(SHIFTS, device=query.device)) % len(keys)
        return call(query, keys, positive, negatives, temperature=0.2)

    return run


def sampled_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (M, J, D): query and keys (M, D), as many as each other; positive_index (M,), negative_index (M, J)."""
    m, drawn, width = shape
    generator = torch.Generator(device).manual_seed(seed)
    query, keys = (torch.randn(m, width, generator=generator, device=device).to(dtype) for _ in range(2))
    positive = torch.arange(m, device=device)
    other = torch.randint(max(1, m - 1), (m, drawn), generator=generator, device=device)
    return {"query": query, "keys": keys, "positive_index": positive, "negative_index": (positive[:, None] + 1 + other) % m}


def _step(call, given: Given) -> Results:
    names = ("query", "keys", "positive_index", "negative_index")
    return {"loss": call(*(given[name] for name in names), reduction="sum")}


SAMPLED_CASE = UpdateCase(
    "sampled_info_nce",
    sampled_state,
    partial(forward_backward, partial(_step, functional.sampled_info_nce), LEAVES["sampled_info_nce"]),
    partial(forward_backward, partial(_step, sampled_info_nce), LEAVES["sampled_info_nce"]),
    ("loss", "query_grad", "keys_grad"),
    ("query", "keys", "positive_index", "negative_index"),
    steps=1,
    bytes=lambda s, itemsize: float(4 * s[0] * s[2] * itemsize + 8 * s[0] * (s[1] + 1)),
)
