"""What the recipes of SimCSE and BERT share: sentences that Python ships, and their embeddings."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastssl.methods import BERT, SimCSE
from fastssl.train import UsageError
from fastssl.train.recipes._options import OWN_DATA

if TYPE_CHECKING:
    from fastssl.train.sentences import SentenceData

TEXT_ENCODERS = ("bert", "text")


def load_sentences(config: Any) -> "SentenceData":
    """Pieces of words for BERT's encoder, whole words for the built-in one, which needs neither transformers nor tokenizers.

    ``config`` is one of ``SimCSESettings`` or ``BERTSettings``.
    """
    from fastssl.train.sentences import sentences

    if config.data not in ("sentences", "triples"):
        known = f"known: sentences, triples (supervised); text of your own: {OWN_DATA}"
        raise UsageError(f"--data: unknown data set '{config.data}'; {known}")
    if config.backbone not in TEXT_ENCODERS:
        raise UsageError(f"--backbone: unknown encoder '{config.backbone}' of text; known: {', '.join(TEXT_ENCODERS)}")
    if config.backbone == "bert" and not find_spec("transformers"):
        raise UsageError("--backbone bert: needs transformers (pip install transformers); the built-in encoder is --backbone text")
    return sentences(config.data, pieces=config.backbone == "bert")


def no_views(config: Any, data: "SentenceData") -> None:
    """Sentences are not augmented."""


@torch.no_grad()
def embed_sentences(method: SimCSE | BERT, tokens: Tensor, device: torch.device | str) -> Tensor:
    """tokens (N, L) -> unit rows (N, F) on ``device``, in evaluation mode."""
    from fastssl.train.evaluate import evaluating

    with evaluating(method):
        parts = [method.embed(part, (part != 0).to(torch.int64)).float() for part in tokens.to(device).split(256)]
    return nn.functional.normalize(torch.cat(parts), dim=1)


def sentence_points(
    method: SimCSE | BERT, data: "SentenceData", *, device: torch.device | str, workers: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The sentences of the twelve longest test documents."""
    longest = data.test.groups.bincount().topk(min(12, len(data.documents))).indices
    kept = torch.isin(data.test.groups, longest)
    labels = (data.test.groups[kept][:, None] == longest).int().argmax(1)
    names = tuple(data.documents[i] for i in longest.tolist())
    return embed_sentences(method, data.test.tokens[kept], device), labels.to(device), names
