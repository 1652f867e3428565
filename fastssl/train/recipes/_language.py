"""What the recipes of GPT and T5 share: documents as rows of tokens, and the models of single tokens and pairs beside them."""

from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from fastssl.train import UsageError
from fastssl.train.recipes._options import OWN_DATA
from fastssl.train.recipes._sentences import sentence_points
from fastssl.train.settings import Option, data_name

if TYPE_CHECKING:
    from fastssl.train.streams import StreamData

LENGTH = 48  # of a row in tokens
Text = Annotated[str, Option(f"sentences; text of your own: {OWN_DATA}", parse=data_name)]


def load_streams(config: Any) -> "StreamData":
    from fastssl.train.streams import streams

    if config.data != "sentences":
        raise UsageError(f"--data: {config.method} learns from sentences, got '{config.data}'; text of your own: {OWN_DATA}")
    return streams(LENGTH)


def stream_points(method: Any, data: "StreamData", **where: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    return sentence_points(method, data.sentences, **where)


def bigram_scores(train: Tensor, test: Tensor, vocabulary: int) -> dict[str, float]:
    """How well counts of the training rows name the second of two tokens that follow each other in the test rows.

    Args:
        train: (N, L) int64 in [0, ``vocabulary``).
        test: (M, L).
        vocabulary: number of tokens V.

    Returns:
        ``unigram``, ``bigram``: the share that the commonest token is, and the commonest one behind the token before.
        ``bigram_perplexity``: of the smoothed bigrams of Witten and Bell, (n(a, b) + T(a) p(b)) / (n(a) + T(a)), T(a) the number of
        different tokens behind a, and p(b) = (n(b) + 1) / (n + V).
    """
    pairs = train[:, :-1] * vocabulary + train[:, 1:]
    counts = pairs.flatten().bincount(minlength=vocabulary**2).view(vocabulary, vocabulary)
    single = train[:, 1:].flatten().bincount(minlength=vocabulary)
    before, after = test[:, :-1].flatten(), test[:, 1:].flatten()
    kinds, seen = (counts > 0).sum(1)[before], counts.sum(1)[before]
    likely = (single + 1).double() / (single.sum() + vocabulary)
    mixed = (counts[before, after] + kinds * likely[after]) / (seen + kinds).clamp_min(1)
    probability = torch.where(seen > 0, mixed, likely[after])
    follower = torch.where(seen > 0, counts.argmax(1)[before], single.argmax())
    return {
        "unigram": (after == single.argmax()).float().mean().item(),
        "bigram": (after == follower).float().mean().item(),
        "bigram_perplexity": probability.log().mean().neg().exp().item(),
    }
