"""How ``fastssl train t5`` runs T5, scored by the tokens of cut-out spans that it names in held-out documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from fastssl.masking import span_lengths
from fastssl.methods import T5
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._language import LENGTH, Text, load_streams, stream_points
from fastssl.train.recipes._sentences import RETRIEVAL, answer_accuracy, commonest_token, no_views, retrieval
from fastssl.train.recipes.bert import tokens_alone
from fastssl.train.settings import LearningRate, Option, TrainConfig

if TYPE_CHECKING:
    from fastssl.train.streams import StreamData


@dataclass(frozen=True, kw_only=True)
class T5Settings(TrainConfig):
    method: str = "t5"
    data: Text = "sentences"
    epochs: int = 5
    batch_size: int = 16
    lr: LearningRate = 2e-3
    mask_ratio: Annotated[float, Option("share of the tokens that is cut out", above=0, most=0.9)] = 0.15
    mean_span: Annotated[float, Option("mean number of tokens of a span", least=1, most=LENGTH)] = 3.0


def build(config: T5Settings, data: "StreamData") -> T5:
    """More tokens than the tokeniser has: the end, and as many sentinels as a row has spans."""
    spans = (sum(span_lengths(LENGTH, config.mask_ratio, config.mean_span, eos=False)) - LENGTH) // 2
    return T5(
        data.vocabulary + 1 + spans,
        eos_id=data.vocabulary,
        width=96,
        length=LENGTH,
        density=config.mask_ratio,
        mean_span=config.mean_span,
    )


def span_answers(method: T5, data: "StreamData", device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    for seed, part in enumerate(data.test.tokens.to(device).split(64)):
        logits, tokens = method.predict(part, seed=seed)
        yield logits[:, : data.vocabulary], tokens


def scores(
    method: T5,
    data: "StreamData",
    config: T5Settings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """The tokens of spans of the test rows, each from those of its span before it; the same spans are cut out each time.

    Sentinels and end are no answers: that a place has a token of the text is known.
    """
    found = answer_accuracy(method, span_answers(method, data, device), commonest_token(data.train.tokens, []))
    return found | retrieval(method, data.sentences, device)


RECIPE = Recipe(
    settings=T5Settings,
    load=load_streams,
    build=build,
    augment=no_views,
    arguments=tokens_alone,
    monitor=scores,
    points=stream_points,
    scores={"accuracy": ("accuracy", "tokens of spans named")} | RETRIEVAL,
    watch={"commonest": ("commonest", "named as the commonest token", ".3f")},
    loss="span corruption",
    heading="test documents",
    unit="rows of text",
)
