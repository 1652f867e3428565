"""How ``fastssl train simcse`` runs SimCSE, on sentences or on triples, scored by retrieval."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from fastssl.methods import SimCSE
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._options import OWN_DATA, Negatives, Temperature
from fastssl.train.recipes._sentences import RETRIEVAL, load_sentences, no_views, retrieval, sentence_points
from fastssl.train.settings import LearningRate, Option, TrainConfig, data_name

if TYPE_CHECKING:
    from fastssl.train.sentences import SentenceData


@dataclass(frozen=True, kw_only=True)
class SimCSESettings(TrainConfig):
    method: str = "simcse"
    data: Annotated[
        str,
        Option(
            f"sentences, or triples (supervised: sentence, next sentence, hard negative); text of your own: {OWN_DATA}",
            parse=data_name,
        ),
    ] = "sentences"
    epochs: int = 3
    batch_size: int = 128
    lr: LearningRate = 4e-3
    backbone: Annotated[
        str,
        Option(
            "bert (transformers' BertModel, small, fresh weights), or text (built in)",
            default="bert where transformers is installed, else text",
        ),
    ] = "bert" if find_spec("transformers") else "text"
    pooler: Annotated[str, Option("mean over the tokens, or cls: the first one", choices=("cls", "mean"))] = "mean"
    temperature: Temperature = 0.1
    negatives: Negatives = "global"


def build(config: SimCSESettings, data: "SentenceData") -> SimCSE:
    from fastssl.train.text import TextTransformer, small_bert

    make = small_bert if config.backbone == "bert" else TextTransformer
    return SimCSE(make(data.vocabulary, width=64, depth=1), config.pooler, config.temperature, negatives=config.negatives)


def sentence_arguments(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, mask, and of triples the paragraph: its sentences are not each other's negatives."""
    tokens, groups = batch
    return tokens, (tokens != 0).to(torch.int64), groups if tokens.ndim == 3 else None


def sentence_scores(
    method: SimCSE,
    data: "SentenceData",
    config: SimCSESettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    return retrieval(method, data, device)


RECIPE = Recipe(
    settings=SimCSESettings,
    load=load_sentences,
    build=build,
    augment=no_views,
    arguments=sentence_arguments,
    monitor=sentence_scores,
    points=sentence_points,
    scores=RETRIEVAL,
    loss="InfoNCE",
    heading="retrieval of test sentences",
    unit="sentences",
)
