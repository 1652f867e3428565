"""How ``fastssl train word2vec`` runs skip-gram and CBOW, scored by the words of test sentences and by plurals."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from fastssl.methods import Word2Vec
from fastssl.methods.word2vec import UNITS
from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._options import OWN_DATA
from fastssl.train.recipes._sentences import load_sentences, no_views, sentence_points
from fastssl.train.recipes.bert import tokens_alone
from fastssl.train.settings import LearningRate, Option, TrainConfig, data_name

if TYPE_CHECKING:
    from fastssl.train.sentences import SentenceData

FREQUENT = 10  # times that a word occurs in the training sentences, so that its vector has seen something
PAIRS = 20_000  # pairs of words of the test sentences that a score is over


@dataclass(frozen=True, kw_only=True)
class Word2VecSettings(TrainConfig):
    method: str = "word2vec"
    data: Annotated[str, Option(f"sentences; text of your own: {OWN_DATA}", parse=data_name)] = "sentences"
    backbone: str = "text"  # whole words
    epochs: int = 16
    batch_size: int = 128
    optimizer: Annotated[
        str,
        Option(
            "adamw or sgd; with --objective negative they touch the rows of the words of a batch: SparseAdam, and no momentum",
            choices=("adamw", "sgd"),
        ),
    ] = "adamw"
    lr: LearningRate = 1e-2
    weight_decay: Annotated[float, Option("weight decay of the vectors", least=0, only_with=("objective", "softmax"))] = 1e-4
    knn_every: int = 4
    architecture: Annotated[
        str,
        Option(
            "skip-gram, each word of a window from the one in its middle, or cbow, that one from the mean of its window",
            choices=("skip-gram", "cbow"),
        ),
    ] = "skip-gram"
    objective: Annotated[
        str, Option("negative: negative sampling; softmax: the exact softmax over all words", choices=("negative", "softmax"))
    ] = "negative"
    dim: Annotated[int, Option("width of the vectors", least=1)] = 64
    window: Annotated[int, Option("most words to each side", least=1)] = 5
    negatives: Annotated[int, Option("sampled words of each pair", least=1, only_with=("objective", "negative"))] = 5
    subsample: Annotated[
        float, Option("share of a word in the text from which on some of its occurrences are left out", above=0)
    ] = 1e-3


def load_words(config: Word2VecSettings) -> "SentenceData":
    """Sentences as whole words."""
    if config.data != "sentences":
        raise UsageError(f"--data: word2vec learns from sentences, got '{config.data}'; text of your own: {OWN_DATA}")
    return load_sentences(config)


def build(config: Word2VecSettings, data: "SentenceData") -> Word2Vec:
    """The counts of the training sentences, in which the tokens that are no words count 0."""
    from fastssl.train.text import SPECIAL

    counts = data.train.tokens.flatten().bincount(minlength=data.vocabulary)
    counts[: len(SPECIAL)] = 0
    how = {name: getattr(config, name) for name in ("architecture", "objective", "window", "negatives", "subsample")}
    return Word2Vec(counts, config.dim, **how)


def held_out(method: Word2Vec, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of test sentences, the same each time: given words (B, C), the word (B,) that goes with them, and a word of noise."""
    device = method.counts.device
    generator = torch.Generator(device).manual_seed(0)
    given, target = method.pairs(tokens.to(device), generator)
    chosen = torch.randperm(len(target), generator=generator, device=device)[:PAIRS]
    draws = torch.rand(len(chosen), generator=generator, dtype=torch.float64, device=device)
    return given[chosen], target[chosen], torch.searchsorted(method.cumulated, (draws * UNITS).long(), right=True)


def rank_in(scores: Tensor, of: Tensor) -> Tensor:
    """The rank (B,), from 1 on, of the entries ``of`` (B,) in rows of scores (B, V); the middle one of equals."""
    own = scores.gather(1, of[:, None])
    return ((scores > own).sum(1) + (scores >= own).sum(1) + 1) / 2


@torch.no_grad()
def word_scores(
    method: Word2Vec,
    data: "SentenceData",
    config: Word2VecSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """``told``: share of test pairs whose word scores above a word of noise. ``reciprocal``: mean of 1 / its rank among all words,
    and ``commonest`` the same where words are ranked by how common they are. ``plural``: share of words that have their plural, or
    the other way, among the ten nearest."""
    found: dict[str, list[Tensor]] = {"told": [], "reciprocal": [], "commonest": []}
    prior = method.power * method.counts.log()
    for given, target, noise in zip(*(t.split(2048) for t in held_out(method, data.test.tokens)), strict=True):
        logits = method.predict(given)
        found["reciprocal"].append(1 / rank_in(logits, target))
        found["commonest"].append(1 / rank_in(prior.expand_as(logits), target))
        real, unreal = ((logits - prior).gather(1, ids[:, None])[:, 0] for ids in (target, noise))
        found["told"].append((0.5 * ((real > unreal).double() + (real >= unreal).double()))[target != noise])
    return {name: torch.cat(parts).double().mean().item() for name, parts in found.items()} | plurals(method, data.words)


def plurals(method: Word2Vec, words: tuple[str, ...]) -> dict[str, float]:
    """Words and plurals (or verbs of the third person) that are both frequent; {} where there are none."""
    ids = {words[i]: i for i in (method.counts >= FREQUENT).nonzero().flatten().tolist()}
    pairs = [(i, ids[f"{word}s"]) for word, i in ids.items() if len(word) > 2 and word.isalpha() and f"{word}s" in ids]
    if not pairs:
        return {}
    first, second = torch.tensor([*pairs, *((b, a) for a, b in pairs)], device=method.counts.device).T
    unit = nn.functional.normalize(method.inputs.weight, dim=1)
    cosines = (unit[first] @ unit.T).masked_fill(method.counts < FREQUENT, -2.0).scatter(1, first[:, None], -2.0)
    return {"plural": (rank_in(cosines, second) <= 10).double().mean().item()}


RECIPE = Recipe(
    settings=Word2VecSettings,
    load=load_words,
    build=build,
    augment=no_views,
    arguments=tokens_alone,
    monitor=word_scores,
    points=sentence_points,
    scores={
        "told": ("told", "test pairs told from noise"),
        "reciprocal": ("1/rank", "1 / rank of the word"),
        "plural": ("plural", "plural among the ten nearest"),
    },
    watch={
        "reciprocal": ("1/rank", "1 / rank of the word", ".3f"),
        "commonest": ("commonest", "1 / rank by how common words are", ".3f"),
        "plural": ("plural", "plural among the ten nearest", ".3f"),
    },
    loss="negative sampling",
    heading="test sentences",
    unit="sentences",
)
