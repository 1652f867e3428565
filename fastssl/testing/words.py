"""Negative sampling over two tables of words: inputs, the eager form, and the step that is measured.

The step is a whole one of skip-gram: loss, gradients of the rows that occur, and Adam on those rows. Eager is what torch has:
``torch.nn.Embedding(sparse=True)`` and ``torch.optim.SparseAdam``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional
from fastssl.checks import accumulator_dtype
from fastssl.testing.updates import State, Step, UpdateCase

SHIFTS = (1, 2, 2, 3, 5, 8)  # from the target to the negatives of the cases; one comes twice
NAMES = ("inputs", "outputs", "input_ids", "target_ids", "negative_ids")


def word_pairs(inputs, outputs, input_ids, target_ids, negative_ids, *, reduction="mean") -> Tensor:
    """The rows (B, K, D) of all negatives, gathered; input_ids (B, C), of which some are -1."""
    v, u = inputs.to(accumulator_dtype(inputs)), outputs.to(accumulator_dtype(outputs))
    there = (input_ids >= 0)[:, :, None]
    h = torch.where(there, v[input_ids.clamp_min(0)], 0.0).sum(1) / there.sum(1).clamp_min(1)
    noise = F.softplus((h[:, None] * u[negative_ids.clamp_min(0)]).sum(2), threshold=40.0)
    losses = F.softplus(-(h * u[target_ids]).sum(1)) + torch.where(negative_ids < 0, 0.0, noise).sum(1)
    return losses.mean() if reduction == "mean" else losses


def tables(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, Tensor]:
    """shape (V, U, D): inputs (V, D), outputs (U, D), with products of size 1."""
    v, u, width = shape
    rows = torch.randn((v + u, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * width**-0.25
    rows = rows.to(dtype).to(device)
    return {"inputs": rows[:v].clone(), "outputs": rows[v:].clone()}


def with_ids(call: Callable) -> Callable:
    """The call for windows of two words around each word, with six negatives; those that are the target are left out."""

    def run(inputs, outputs):
        at = torch.arange(len(inputs), device=inputs.device)
        windows = torch.stack([at, torch.where(at % 3 == 0, -1, (at + 1) % len(inputs))], 1)
        target = at % len(outputs)
        drawn = (target[:, None] + torch.tensor(SHIFTS, device=inputs.device)) % len(outputs)
        return call(inputs, outputs, windows, target, torch.where(drawn == target[:, None], -1, drawn))

    return run


def shares(words: int) -> tuple[Tensor, Tensor]:
    """How often each word comes, and how often it is drawn as a negative, (V,)."""
    each = 1.0 / torch.arange(1, words + 1)
    return each / each.sum(), each**0.75 / (each**0.75).sum()


def words_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (B, K, V, D): inputs, outputs (V, D), input_ids, target_ids (B,), negative_ids (B, K).

    Words come as 1 / rank, and negatives as its power 0.75. A negative that is the target stays: torch has no row to leave out.
    """
    pairs, drawn, words, width = shape
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(words, width, generator=generator).mul_(width**-0.25) for _ in range(2)]
    each, noise = shares(words)
    ids = [
        torch.multinomial(share, n, True, generator=generator)
        for share, n in ((each, pairs), (each, pairs), (noise, pairs * drawn))
    ]
    ids[2] = ids[2].view(pairs, drawn)
    tensors = [t.to(dtype).to(device) for t in vectors] + [t.to(device) for t in ids]
    return dict(zip(NAMES, tensors, strict=True))


def training(state: State, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Step:
    """Loss, backward and step; no gradient stays."""

    def step():
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        state["loss"] = value.detach()

    return step


def ours_words(state: State, lr: float, eps: float) -> Step:
    from fastssl.optim import SparseAdam

    given = [state[name] for name in NAMES]
    both = [t.requires_grad_() for t in given[:2]]
    return training(state, lambda: functional.word_pairs(*given, reduction="sum"), SparseAdam(both, lr, eps=eps))


def eager_words(state: State, lr: float, eps: float) -> Step:
    """Two sparse embeddings; the products with the negatives are one batched product."""
    words, contexts = (torch.nn.Embedding.from_pretrained(state[name], freeze=False, sparse=True) for name in NAMES[:2])

    def loss():
        h, target = words(state["input_ids"]), contexts(state["target_ids"])
        noise = (contexts(state["negative_ids"]) @ h[:, :, None]).squeeze(2)
        return -F.logsigmoid((h * target).sum(1)).sum() - F.logsigmoid(-noise).sum()

    return training(state, loss, torch.optim.SparseAdam([words.weight, contexts.weight], lr, eps=eps))


def words_bytes(shape: tuple, itemsize: int) -> float:
    """A row that occurs, by expectation: Adam reads four of its kind and writes three, and its gradient is written. And all ids."""
    pairs, drawn, words, width = shape
    each, noise = shares(words)
    absent = (1 - each) ** pairs
    occur = float((2 - absent - absent * (1 - noise) ** (pairs * drawn)).sum())
    return itemsize * width * 8 * occur + 8.0 * pairs * (2 + drawn)


WORDS_CASE = UpdateCase(
    "word_pairs",
    words_state,
    ours_words,
    eager_words,
    ("inputs", "outputs", "loss"),
    NAMES[2:],
    steps=1,
    bytes=words_bytes,
)
