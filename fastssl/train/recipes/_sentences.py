"""What the recipes of text share: sentences that Python ships, their embeddings, and the answers of a task about them."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastssl._options import closest
from fastssl.train import UsageError
from fastssl.train.recipes._options import OWN_DATA

if TYPE_CHECKING:
    from fastssl.train.sentences import SentenceData

TEXT_ENCODERS = ("bert", "text")
RETRIEVAL = {
    "part1": ("part@1", "third of words, recall@1"),
    "part10": ("part@10", "third of words, recall@10"),
    "next1": ("next@1", "next sentence, recall@1"),
    "next10": ("next@10", "next sentence, recall@10"),
}


def load_sentences(config: Any) -> "SentenceData":
    """Pieces of words for BERT's encoder, whole words for the built-in one, which needs neither transformers nor tokenizers.

    ``config`` is one of ``SimCSESettings`` or ``BERTSettings``.
    """
    from fastssl.train.sentences import sentences

    if config.data not in ("sentences", "triples"):
        hint = closest(config.data, ("sentences", "triples"))
        known = f"known: sentences, triples (supervised); text of your own: {OWN_DATA}"
        raise UsageError(f"--data: unknown data set '{config.data}'{hint or f'; {known}'}")
    if config.backbone not in TEXT_ENCODERS:
        hint = closest(config.backbone, TEXT_ENCODERS) or f"; known: {', '.join(TEXT_ENCODERS)}"
        raise UsageError(f"--backbone: unknown encoder '{config.backbone}' of text{hint}")
    if config.backbone == "bert" and not find_spec("transformers"):
        raise UsageError("--backbone bert: needs transformers (pip install transformers); the built-in encoder is --backbone text")
    return sentences(config.data, pieces=config.backbone == "bert")


def no_views(config: Any, data: "SentenceData") -> None:
    """Sentences are not augmented."""


def recalls(similarity: Tensor, target: Tensor, name: str) -> dict[str, float]:
    """Share of rows (N, M) whose ``target`` (N,) is first, and among the first ten."""
    rank = (similarity > similarity.gather(1, target[:, None])).sum(1)
    return {f"{name}{k}": (rank < k).float().mean().item() for k in (1, 10)}


@torch.no_grad()
def embed_sentences(method: Any, tokens: Tensor, device: torch.device | str) -> Tensor:
    """tokens (N, L) -> unit rows (N, F) on ``device``, in evaluation mode."""
    from fastssl.train.evaluate import evaluating

    with evaluating(method):
        parts = [method.embed(part, (part != 0).to(torch.int64)).float() for part in tokens.to(device).split(256)]
    return nn.functional.normalize(torch.cat(parts), dim=1)


def retrieval(method: Any, data: "SentenceData", device: torch.device | str) -> dict[str, float]:
    """Among all test sentences: the one that every third word is of, and the one that follows in the paragraph."""
    bank, part = (embed_sentences(method, tokens, device) for tokens in (data.test.tokens, data.parts))
    first, second = data.neighbours.to(device).T
    others = (bank[first] @ bank.T).scatter(1, first[:, None], -2.0)
    own = torch.arange(len(bank), device=device)
    return recalls(part @ bank.T, own, "part") | recalls(others, second, "next")


def sentence_points(
    method: Any, data: "SentenceData", *, device: torch.device | str, workers: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The sentences of the twelve longest test documents."""
    longest = data.test.groups.bincount().topk(min(12, len(data.documents))).indices
    kept = torch.isin(data.test.groups, longest)
    labels = (data.test.groups[kept][:, None] == longest).int().argmax(1)
    names = tuple(data.documents[i] for i in longest.tolist())
    return embed_sentences(method, data.test.tokens[kept], device), labels.to(device), names


@torch.no_grad()
def answer_accuracy(method: nn.Module, answers: Iterable[tuple[Tensor, Tensor]], commonest: int | None = None) -> dict[str, float]:
    """How many questions about held-out text are answered right.

    Args:
        method: the method that answers, here in evaluation mode.
        answers: (logits (M, C), labels (M,)) of parts of the questions.
        commonest: the answer that would always be given without looking. None: the one that most of the labels are.

    Returns:
        ``accuracy``: the share that is right. ``commonest``: the share that is right where ``commonest`` is always the answer.
    """
    from fastssl.train.evaluate import evaluating

    with evaluating(method):
        pairs = [((logits.argmax(1) == labels).sum(), labels) for logits, labels in answers]
    labels = torch.cat([found for _, found in pairs])
    if len(labels) == 0:
        return {"accuracy": 0.0, "commonest": 0.0}
    always = labels.mode().values if commonest is None else commonest
    right = torch.stack([count for count, _ in pairs]).sum() / len(labels)
    return {"accuracy": right.item(), "commonest": (labels == always).float().mean().item()}


def commonest_token(tokens: Tensor, special: Iterable[int]) -> int:
    """The token that the rows have most often, without those that are special."""
    counts = tokens.flatten().bincount()
    counts[[i for i in special if i < len(counts)]] = 0
    return int(counts.argmax())
