"""How ``fastssl train bert`` runs BERT: on hidden words, or on pairs of sentences that follow each other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from fastssl.methods import BERT, NextSentence, QuickThoughts, SentenceOrder, SkipThought
from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._options import OWN_DATA
from fastssl.train.recipes._sentences import (
    RETRIEVAL,
    answer_accuracy,
    commonest_token,
    load_sentences,
    no_views,
    retrieval,
    sentence_points,
)
from fastssl.train.settings import LearningRate, Option, TrainConfig, data_name

if TYPE_CHECKING:
    from fastssl.train.sentences import SentenceData

ANSWERS = {"nsp": NextSentence, "sop": SentenceOrder}  # tasks of one text of two sentences
NEIGHBOURS = {"skip_thought": SkipThought, "quick_thoughts": QuickThoughts}  # of two texts
LENGTH = 24  # of a sentence in tokens


@dataclass(frozen=True, kw_only=True)
class BERTSettings(TrainConfig):
    method: str = "bert"
    data: Annotated[str, Option(f"sentences; text of your own: {OWN_DATA}", parse=data_name)] = "sentences"
    backbone: str = "text"  # the only one there is
    epochs: int = 10
    batch_size: int = 64
    lr: LearningRate = 2e-3
    task: Annotated[
        str,
        Option(
            "mlm, name hidden words; nsp, say whether a sentence is the next one; sop, say which of two sentences comes first; "
            "skip_thought, write the sentences before and after; quick_thoughts, choose them among others",
            choices=("mlm", *ANSWERS, *NEIGHBOURS),
        ),
    ] = "mlm"
    mlm_weight: Annotated[float, Option("weight of the loss of hidden words with --task nsp or sop", least=0)] = 0.1
    mask_ratio: Annotated[float, Option("share of the tokens that is selected", above=0, most=1)] = 0.15


def load_words(config: BERTSettings) -> "SentenceData":
    """Sentences as whole words, in pairs where the task needs them."""
    from fastssl.train.sentences import sentences

    if config.data != "sentences":
        raise UsageError(f"--data: bert learns from sentences, got '{config.data}'; text of your own: {OWN_DATA}")
    if config.task == "mlm":
        return load_sentences(config)
    return replace(sentences("pairs", pieces=False, length=LENGTH), name=config.data)


def build(config: BERTSettings, data: "SentenceData") -> nn.Module:
    """One token more than the tokeniser has: the mask."""
    from fastssl.train.text import SPECIAL

    if config.mask_ratio == 1:
        raise UsageError("--mask-ratio 1.0: must be below 1")
    special, mask = tuple(range(len(SPECIAL))), data.vocabulary
    length = LENGTH if config.task == "mlm" else 2 * LENGTH
    bert = BERT(mask + 1, mask_id=mask, special_ids=special, width=96, length=length, probability=config.mask_ratio)
    if config.task in ANSWERS:
        return ANSWERS[config.task](bert, mlm_weight=config.mlm_weight)
    if config.task == "mlm":
        return bert
    for unused in (*bert.head.parameters(), bert.bias):
        unused.requires_grad_(False)
    return NEIGHBOURS[config.task](bert)


def tokens_alone(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sentences (N, L), or pairs (N, 2, L) as two arguments."""
    return (batch[0],) if batch[0].ndim == 2 else batch[0].unbind(1)


def word_accuracy(method: BERT, data: "SentenceData", *, device: torch.device | str) -> dict[str, float]:
    """The hidden tokens of the test sentences; the same tokens are hidden each time.

    Returns:
        ``accuracy``: the share of them that is named. ``commonest``: the share that is right where the commonest training token is
        always named.
    """
    parts = enumerate(data.test.tokens.to(device).split(256))
    answers = (method.predict(part, seed=seed) for seed, part in parts)
    return answer_accuracy(method, answers, commonest_token(data.train.tokens, method.special_ids.tolist()))


def pair_answers(method: Any, data: "SentenceData", *, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and answers about the test sentences that follow each other; what is drawn of them is always the same."""
    first, second = data.test.tokens[data.neighbours.T].to(device)
    if isinstance(method, QuickThoughts):
        yield method.predict(first, second)
    elif isinstance(method, SkipThought):
        for part in zip(first.split(64), second.split(64), strict=True):
            yield method.predict(*part)
    else:
        for seed in range(4):
            yield method.predict(first, second, seed=seed)[:2]


def task_scores(
    method: Any,
    data: "SentenceData",
    config: BERTSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    if config.task == "mlm":
        found = word_accuracy(method, data, device=device)
    else:
        commonest = commonest_token(data.train.tokens, range(3)) if config.task == "skip_thought" else None
        found = answer_accuracy(method, pair_answers(method, data, device=device), commonest)
    return found | retrieval(method, data, device)


RECIPE = Recipe(
    settings=BERTSettings,
    load=load_words,
    build=build,
    augment=no_views,
    arguments=tokens_alone,
    monitor=task_scores,
    points=sentence_points,
    scores={"accuracy": ("accuracy", "right answers, task {config.task}")} | RETRIEVAL,
    watch={"commonest": ("commonest", "the commonest answer", ".3f")},
    loss="masked language model",
    heading="test sentences",
    unit="sentences",
)
