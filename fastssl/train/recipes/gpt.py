"""How ``fastssl train gpt`` runs GPT, scored by the next tokens of held-out documents, beside counts of tokens and of pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fastssl.methods import GPT
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._language import LENGTH, Text, bigram_scores, load_streams, stream_points
from fastssl.train.recipes._sentences import RETRIEVAL, no_views, retrieval
from fastssl.train.recipes.bert import tokens_alone
from fastssl.train.settings import LearningRate, TrainConfig

if TYPE_CHECKING:
    from fastssl.train.streams import StreamData


@dataclass(frozen=True, kw_only=True)
class GPTSettings(TrainConfig):
    method: str = "gpt"
    data: Text = "sentences"
    epochs: int = 4
    batch_size: int = 16
    lr: LearningRate = 2e-3


def build(config: GPTSettings, data: "StreamData") -> GPT:
    return GPT(data.vocabulary, width=96, length=LENGTH)


@torch.no_grad()
def next_tokens(method: GPT, data: "StreamData", device: torch.device | str) -> dict[str, float]:
    """``accuracy``, the share of the test rows' tokens that is named from those before, and ``perplexity``."""
    from fastssl.train.evaluate import evaluating

    right, loss, total = 0, 0.0, 0
    with evaluating(method):
        for part in data.test.tokens.to(device).split(64):
            logits, labels = method.predict(part)
            right += int((logits.argmax(1) == labels).sum())
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").item()
            total += len(labels)
    return {"accuracy": right / total, "perplexity": torch.tensor(loss / total, dtype=torch.float64).exp().item()}


def scores(
    method: GPT,
    data: "StreamData",
    config: GPTSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    counted = bigram_scores(data.train.tokens, data.test.tokens, data.vocabulary)
    return next_tokens(method, data, device) | counted | retrieval(method, data.sentences, device)


RECIPE = Recipe(
    settings=GPTSettings,
    load=load_streams,
    build=build,
    augment=no_views,
    arguments=tokens_alone,
    monitor=scores,
    points=stream_points,
    scores={"accuracy": ("accuracy", "next tokens named"), "perplexity": ("perplexity", "perplexity")} | RETRIEVAL,
    watch={
        "unigram": ("commonest", "named as the commonest token", ".3f"),
        "bigram": ("bigram", "named by a bigram model", ".3f"),
        "bigram_perplexity": ("bigram perplexity", "perplexity of a bigram model", ".1f"),
    },
    loss="next token",
    heading="test documents",
    unit="rows of text",
)
