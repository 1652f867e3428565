"""Pairs of sentences for BERT: whether one follows the other (Devlin et al. 2019), or which of two comes first (Lan et al. 2020).

A text is [CLS] a [SEP] b [SEP]; every token of a has the segment s_0 added, every one of b s_1. With h the states of the text, some
of whose tokens are hidden, and y the answer,

    z = W_2 tanh(W_1 h_[CLS])        loss = mean over pairs of -log softmax(z)_y  +  w (BERT's loss of the hidden tokens)

    next sentence     half of the pairs, drawn at random, have the second sentence of another pair; y = 1: b is the next one
    sentence order    half of the pairs, drawn at random, are swapped; y = 1: they stand in the text's order
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_number
from fastssl.ops._philox import random_bits
from fastssl.ops._random import seed_of

from ._texts import IGNORED, check_kind, check_pair
from .bert import BERT, named_loss

_STREAM = 0x70616972


class SentencePairs(nn.Module):
    """What the two tasks share: a BERT, segments, the answer of the class token. A subclass says which pairs are shown."""

    least = 1  # pairs of a batch

    def __init__(self, encoder: BERT, *, mlm_weight: float = 1.0):
        super().__init__()
        self.name = type(self).__name__
        check_kind(self.name, encoder, BERT, "a BERT")
        check_number(self.name, "mlm_weight", mlm_weight, 0.0)
        width = self.feature_dim = encoder.feature_dim
        self.encoder, self.mlm_weight = encoder, mlm_weight
        self.segments = nn.Parameter(torch.empty(2, width))
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
        nn.init.normal_(self.segments, std=0.02)

    def shown(self, first: Tensor, second: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sentences (N, L) that follow each other, bits (N,) int64 -> the pairs that the encoder sees, and the answers (N,)."""
        raise NotImplementedError

    def joined(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """One text of each pair (N, T), padding at the end, and the segment of each token. The second class token is left out."""
        ids = torch.cat([first, second[:, 1:]], 1)
        segment = (torch.arange(ids.shape[1], device=ids.device) >= first.shape[1]).long().expand_as(ids)
        order = (ids == self.encoder.pad_id).long().argsort(dim=1, stable=True)
        return ids.gather(1, order), segment.gather(1, order)

    def predict(
        self,
        first: Tensor,
        second: Tensor,
        *,
        hide: bool = False,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, 2) and answers (N,) of drawn pairs, and BERT's loss of the tokens that ``hide`` hides, or 0."""
        bert = self.encoder
        check_pair(self.name, first, second, bert.vocab_size, len(bert.positions), self.least)
        drawn = seed_of(self.name, seed, generator, first.device)
        *pair, answers = self.shown(first, second, random_bits(len(first), 1, drawn, _STREAM)[:, 0])
        ids, segment = (part[:, : first.shape[1] + second.shape[1] - 1] for part in self.joined(*pair))
        mask = bert.check(ids, None)
        ids, labels = bert.hide(ids, mask, drawn) if hide else (ids, torch.full_like(ids, IGNORED))
        hidden = bert.encode(ids, mask, self.segments[segment])
        return self.head(hidden[:, 0]), answers, named_loss(*bert.name_tokens(hidden, labels))

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        *,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch of sentences that follow each other.

        Args:
            first: (N, L) int64, each sentence between class token and separator and filled up with ``pad_id``.
            second: (N, K) int64, the sentences that follow; L + K - 1 at most ``length`` of the encoder.
            generator, seed: what the pairs and the hidden tokens are drawn from.

        Returns:
            Scalar float32.

        Raises:
            TypeError, ValueError: tokens that are not int64, of another shape, too long or, where the host sees it, unknown.
        """
        logits, answers, words = self.predict(first, second, hide=self.mlm_weight > 0, generator=generator, seed=seed)
        return named_loss(logits, answers) + self.mlm_weight * words

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids (N, L) int64 -> (N, width), as ``BERT.embed``: the mean over the tokens of each sentence."""
        return self.encoder.embed(input_ids, attention_mask)


class NextSentence(SentencePairs):
    """Next sentence prediction: ``NextSentence(BERT(...))(first, second)`` is the loss.

    Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1. The random sentences are those of other pairs of the batch.

    Args:
        encoder: a ``BERT``, whose ``length`` holds both sentences.
        mlm_weight: weight w of BERT's loss of the hidden tokens, at least 0; 0 hides none.

    Raises:
        TypeError: ``encoder`` is no ``BERT``.
        ValueError: a negative ``mlm_weight``.

    Examples:
        >>> method = NextSentence(BERT(50, mask_id=49, width=8, depth=1, heads=2, length=16))
        >>> method(torch.randint(1, 49, (5, 7)), torch.randint(1, 49, (5, 6)), seed=0).shape
        torch.Size([])
    """

    least = 2

    def shown(self, first: Tensor, second: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        other = (torch.arange(len(first), device=first.device) + 1 + (bits >> 1) % (len(first) - 1)) % len(first)
        return first, torch.where((bits & 1 == 1)[:, None], second, second[other]), bits & 1


class SentenceOrder(SentencePairs):
    """Sentence order prediction: ``SentenceOrder(BERT(...))(first, second)`` is the loss.

    Lan et al. 2020, https://arxiv.org/abs/1909.11942, section 3.1. Both sentences belong together, so their topic tells nothing.

    Args:
        encoder: a ``BERT``, whose ``length`` holds both sentences.
        mlm_weight: weight w of BERT's loss of the hidden tokens, at least 0; 0 hides none.

    Raises:
        TypeError: ``encoder`` is no ``BERT``.
        ValueError: a negative ``mlm_weight``.

    Examples:
        >>> method = SentenceOrder(BERT(50, mask_id=49, width=8, depth=1, heads=2, length=16))
        >>> method(torch.randint(1, 49, (5, 7)), torch.randint(1, 49, (5, 6)), seed=0).shape
        torch.Size([])
    """

    def shown(self, first: Tensor, second: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = max(first.shape[1], second.shape[1])
        a, b = (nn.functional.pad(ids, (0, wide - ids.shape[1]), value=self.encoder.pad_id) for ids in (first, second))
        kept = (bits & 1 == 1)[:, None]
        return torch.where(kept, a, b), torch.where(kept, b, a), bits & 1
