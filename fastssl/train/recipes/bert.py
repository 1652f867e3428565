"""How ``fastssl train bert`` runs the masked language model, scored by the hidden words that it names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from fastssl.methods import BERT
from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._options import OWN_DATA
from fastssl.train.recipes._sentences import load_sentences, no_views, sentence_points
from fastssl.train.settings import LearningRate, Option, TrainConfig, data_name

if TYPE_CHECKING:
    from fastssl.train.sentences import SentenceData


@dataclass(frozen=True, kw_only=True)
class BERTSettings(TrainConfig):
    method: str = "bert"
    data: Annotated[str, Option(f"sentences; text of your own: {OWN_DATA}", parse=data_name)] = "sentences"
    backbone: str = "text"  # the only one there is
    epochs: int = 10
    batch_size: int = 64
    lr: LearningRate = 2e-3
    mask_ratio: Annotated[float, Option("share of the tokens that is selected", above=0, most=1)] = 0.15


def load_words(config: BERTSettings) -> "SentenceData":
    """Sentences as whole words."""
    if config.data != "sentences":
        raise UsageError(f"--data: bert learns from sentences, got '{config.data}'; text of your own: {OWN_DATA}")
    return load_sentences(config)


def build(config: BERTSettings, data: "SentenceData") -> BERT:
    """One token more than the tokeniser has: the mask."""
    from fastssl.train.text import SPECIAL

    if config.mask_ratio == 1:
        raise UsageError("--mask-ratio 1.0: must be below 1")
    special, mask = tuple(range(len(SPECIAL))), data.vocabulary
    return BERT(mask + 1, mask_id=mask, special_ids=special, width=96, length=24, probability=config.mask_ratio)


def tokens_alone(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (batch[0],)


@torch.no_grad()
def word_accuracy(method: BERT, data: "SentenceData", *, device: torch.device | str) -> dict[str, float]:
    """The hidden tokens of the test sentences; the same tokens are hidden each time.

    Returns:
        ``accuracy``: the share of them that is named. ``commonest``: the share that is right where the commonest training token is
        always named.
    """
    from fastssl.train.evaluate import evaluating

    counts = data.train.tokens.flatten().bincount(minlength=method.vocab_size)
    counts[method.special_ids.cpu()] = 0
    commonest = counts.argmax().item()
    named, common, total = 0, 0, 0
    with evaluating(method):
        for seed, part in enumerate(data.test.tokens.to(device).split(256)):
            logits, labels = method.predict(part, seed=seed)
            named += int((logits.argmax(1) == labels).sum())
            common += int((labels == commonest).sum())
            total += len(labels)
    return {"accuracy": named / max(1, total), "commonest": common / max(1, total)}


def word_scores(
    method: BERT,
    data: "SentenceData",
    config: BERTSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    return word_accuracy(method, data, device=device)


RECIPE = Recipe(
    settings=BERTSettings,
    load=load_words,
    build=build,
    augment=no_views,
    arguments=tokens_alone,
    monitor=word_scores,
    points=sentence_points,
    scores={"accuracy": ("accuracy", "hidden words named")},
    watch={"commonest": ("commonest", "the commonest word", ".3f")},
    loss="masked language model",
    heading="test sentences",
    unit="sentences",
)
