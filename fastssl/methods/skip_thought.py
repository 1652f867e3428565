"""Previous and next sentence from a sentence's vector (skip-thought): as words that decoders write, or as a choice among others.

For sentences a and b that follow each other, z(a), z(b) (N, D) the mean of the encoder's states over their tokens:

    SkipThought      loss = mean over the words w_t of b and of a of -log p(w_t | w_<t, z),
                     p of b's words by one GRU, which gets z(a) beside each word, p of a's by another one, which gets z(b)
    QuickThoughts    loss = 1/2 mean_i -log exp<f(a_i), g(b_i)> / sum_j exp<f(a_i), g(b_j)>  +  the same with f(b_i) and g(a_j)

The encoders of both papers are GRUs, and Quick Thoughts' f and g are two of them. Here one transformer encodes all sentences, and f
and g are linear layers behind it.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.functional import info_nce

from ._checks import check_negatives
from ._common import ranks_of
from ._texts import IGNORED, TextEncoder, check_kind, check_pair, vocabulary_loss


class Neighbours(nn.Module):
    """What both methods share: an encoder of texts, sentences that follow each other, embeddings."""

    least = 1  # pairs of a batch

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.name = type(self).__name__
        check_kind(self.name, encoder, TextEncoder, "a BERT, GPT or T5")
        self.encoder, self.feature_dim = encoder, encoder.feature_dim

    def vectors(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """first (N, L), second (N, K) -> the vectors of both (N, D)."""
        length = len(self.encoder.positions)
        check_pair(self.name, first, second, self.encoder.vocab_size, 2 * length, self.least)
        return self.embed(first), self.embed(second)

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids (N, L) int64, attention_mask (N, L), 0 = padding -> (N, width), the mean over the tokens of each sentence."""
        return self.encoder.embed(input_ids, attention_mask)


class SkipThought(Neighbours):
    """Skip-thought vectors: ``SkipThought(BERT(...))(first, second)`` is the loss.

    Kiros et al. 2015, https://arxiv.org/abs/1506.06726, section 2.1. The words of both neighbours are written from a sentence.

    Args:
        encoder: a ``BERT``, ``GPT`` or ``T5``; its token embeddings are also those of the decoders and of the words they name.

    Raises:
        TypeError: ``encoder`` is none of these.

    Examples:
        >>> from fastssl.methods import BERT
        >>> method = SkipThought(BERT(50, mask_id=49, width=8, depth=1, heads=2, length=16))
        >>> method(torch.randint(1, 49, (5, 7)), torch.randint(1, 49, (5, 6))).shape
        torch.Size([])
    """

    def __init__(self, encoder: TextEncoder):
        super().__init__(encoder)
        self.norm = nn.LayerNorm(self.feature_dim)
        self.before, self.after = (nn.GRU(2 * self.feature_dim, self.feature_dim, batch_first=True) for _ in range(2))

    def states(self, decoder: nn.Module, vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """vectors (N, D), ids (N, L) of their neighbours -> states (N (L - 1), D), and the words behind them, or ``IGNORED``."""
        words = self.norm(self.encoder.tokens(ids[:, :-1]))
        hidden, _ = decoder(torch.cat([words, vectors[:, None].expand_as(words)], 2))
        labels = ids.masked_fill(ids == self.encoder.pad_id, IGNORED)[:, 1:]
        return hidden.flatten(0, 1), labels.flatten()

    def both(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        z_first, z_second = self.vectors(first, second)
        parts = (self.states(self.after, z_first, second), self.states(self.before, z_second, first))
        hidden, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return hidden, labels

    def predict(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, V) of the M words of both neighbours, each given those before it, and these words (M,)."""
        hidden, labels = self.both(first, second)
        chosen = labels != IGNORED
        return F.linear(hidden[chosen], self.encoder.tokens.weight), labels[chosen]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """first (N, L), second (N, K) int64, sentences that follow each other -> the loss, a scalar float32."""
        hidden, labels = self.both(first, second)
        return vocabulary_loss(hidden, self.encoder.tokens.weight, labels)


class QuickThoughts(Neighbours):
    """Quick Thoughts: ``QuickThoughts(BERT(...))(first, second)`` is the loss.

    Logeswaran and Lee 2018, https://arxiv.org/abs/1803.02893, section 3. A sentence picks its neighbour among those of the batch.

    Args:
        encoder: a ``BERT``, ``GPT`` or ``T5``.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: ``encoder`` is none of these.
        ValueError: an unknown ``negatives``.

    Examples:
        >>> from fastssl.methods import BERT
        >>> method = QuickThoughts(BERT(50, mask_id=49, width=8, depth=1, heads=2, length=16))
        >>> method(torch.randint(1, 49, (5, 7)), torch.randint(1, 49, (5, 6))).shape
        torch.Size([])
    """

    least = 2

    def __init__(self, encoder: TextEncoder, *, negatives: str = "global"):
        super().__init__(encoder)
        self.negatives = check_negatives(self.name, negatives)
        self.of_sentence, self.of_neighbour = (nn.Linear(self.feature_dim, self.feature_dim) for _ in range(2))

    def predict(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (N, N) of first sentences and candidates for the next one, and which of these it is (N,)."""
        z_first, z_second = self.vectors(first, second)
        return self.of_sentence(z_first) @ self.of_neighbour(z_second).T, torch.arange(len(first), device=first.device)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """first (N, L), second (N, K) int64, sentences that follow each other, N at least 2 -> the loss, a scalar float32."""
        a, b = self.vectors(first, second)
        pairs = ((a, b), (b, a))
        how: dict[str, Any] = {"temperature": 1.0, "normalize": False, "group": ranks_of(self)}
        losses = [cast(Tensor, info_nce(self.of_sentence(x), self.of_neighbour(y), **how)) for x, y in pairs]
        return 0.5 * (losses[0] + losses[1])
