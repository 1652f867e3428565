"""word2vec (Mikolov et al. 2013): a word's vector is what tells the words around it. Two tables u, v of vectors (V, D).

P(keep w) = min(1, sqrt(t / f_w)),  f_w the share of w among all words; what is left moves together
window of place i: b_i words to each side, b_i uniform in 1 ... window
skip-gram   h = u_i,            o = j         for each j in the window of i
CBOW        h = mean_j u_j,     o = i
negative    -log sigmoid(<h, v_o>) - sum_k log sigmoid(-<h, v_k>),    k ~ f^power, k != o       2013b, eq. 4
softmax     -log softmax_o(v h), exact: what the paper's hierarchical softmax stands for        2013b, eq. 2
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_choice, check_dense, check_number, check_whole
from fastssl.functional import word_pairs
from fastssl.ops._random import check_generator

from ._checks import check_positive, check_widths
from ._encoder import mean_of_tokens
from ._texts import check_ids, vocabulary_loss

LONGEST, UNITS = 2**31 - 1, 2**53


class Word2Vec(nn.Module):
    """Vectors of words from the words around them: ``Word2Vec(counts)(input_ids)`` is the loss of a batch of texts.

    Mikolov et al. 2013, https://arxiv.org/abs/1301.3781 and https://arxiv.org/abs/1310.4546, equation 4. With negative sampling
    gradients are sparse: train with ``fastssl.optim.SparseAdam``.

    Args:
        counts: (V,), how often each token occurs in the training texts. A token with a count of 0 is no word, such as padding.
        dim: width D of the vectors.
        architecture: "skip-gram", each word of a window from the one in its middle, or "cbow", that one from their mean.
        objective: "negative" for negative sampling, or "softmax" for the exact softmax over all tokens, with dense gradients.
        window: most words to each side.
        negatives: K sampled words of each pair.
        subsample: t, the share of a word in the texts from which on some of its occurrences are left out; 1 keeps all.
        power: exponent of the counts that negatives are drawn by.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or ``counts`` without a word.

    Examples:
        >>> method = Word2Vec(torch.tensor([0, 3, 2, 2]), dim=8)  # token 0 is padding
        >>> method(torch.tensor([[1, 2, 3, 1], [2, 3, 1, 0]])).shape, method.embed(torch.tensor([1, 3])).shape
        (torch.Size([]), torch.Size([2, 8]))
    """

    counts: Tensor
    cumulated: Tensor  # of the noise, in units of 1 / UNITS: whole numbers, which no cast of the module rounds
    keep: Tensor

    def __init__(
        self,
        counts: Tensor,
        dim: int = 100,
        *,
        architecture: str = "skip-gram",
        objective: str = "negative",
        window: int = 5,
        negatives: int = 5,
        subsample: float = 1e-3,
        power: float = 0.75,
    ):
        super().__init__()
        check_dense("Word2Vec", "counts", counts, "a tensor (V,) of counts")
        if counts.ndim != 1 or not bool((counts >= 0).all() & (counts > 0).any() & (counts < torch.inf).all()):
            raise ValueError(f"Word2Vec: counts must be (V,), at least 0 and not all 0, got {tuple(counts.shape)}: {counts}")
        check_widths("Word2Vec", dim=dim, window=window, negatives=negatives)
        check_choice("Word2Vec", "architecture", architecture, ("skip-gram", "cbow"))
        check_choice("Word2Vec", "objective", objective, ("negative", "softmax"))
        check_number("Word2Vec", "power", power, 0.0)
        check_positive("Word2Vec", subsample=subsample)
        self.architecture, self.objective, self.power = architecture, objective, power
        self.window, self.negatives = window, negatives
        sparse = objective == "negative"
        self.inputs, self.outputs = (nn.Embedding(len(counts), dim, sparse=sparse) for _ in range(2))
        nn.init.uniform_(self.inputs.weight, -0.5 / dim, 0.5 / dim)
        nn.init.zeros_(self.outputs.weight)
        counts = counts.detach().double()
        noise, share = torch.where(counts > 0, counts**power, 0.0).cumsum(0), counts / counts.sum()
        self.register_buffer("counts", counts)
        self.register_buffer("cumulated", (noise / noise[-1] * UNITS).long())
        self.register_buffer("keep", torch.where(share > 0, (subsample / share).sqrt(), 0.0))

    def windows(self, input_ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Texts (N, L) -> words (M,) that were kept, and the words around each (M, 2 window), -1 where there is none."""
        check_ids("Word2Vec", "input_ids", input_ids, len(self.counts), LONGEST)
        check_generator("Word2Vec", generator, input_ids.device)
        how: dict[str, Any] = {"device": input_ids.device, "generator": generator}
        kept = torch.rand(input_ids.shape, dtype=torch.float64, **how) < self.keep[input_ids]
        words = input_ids.where(kept, -1).gather(1, (~kept).long().argsort(dim=1, stable=True))
        around = F.pad(words, (self.window, self.window), value=-1).unfold(1, 2 * self.window + 1, 1)
        reach = torch.randint(1, self.window + 1, (*input_ids.shape, 1), **how)
        offset = torch.arange(-self.window, self.window + 1, device=input_ids.device)
        around = around.where(offset.abs() <= reach, -1)[..., offset != 0]
        used = (words >= 0) & (around >= 0).any(2)
        return words[used], around[used]

    def pairs(self, input_ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Texts (N, L) -> what h is of (P, C), -1 for no word, and o (P,)."""
        words, around = self.windows(input_ids, generator)
        if self.architecture == "cbow":
            return around, words
        row, place = (around >= 0).nonzero(as_tuple=True)
        return words[row, None], around[row, place]

    def forward(self, input_ids: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of texts (N, L) int64: the mean over the pairs that were drawn, and 0 where there were none."""
        given, target = self.pairs(input_ids, generator)
        if not len(target):
            return self.inputs(target).sum() + self.outputs(target).sum()
        if self.objective == "softmax":
            return vocabulary_loss(self.mean_of(given), self.outputs.weight, target)
        uniform = torch.rand(len(target), self.negatives, dtype=torch.float64, device=target.device, generator=generator)
        drawn = torch.searchsorted(self.cumulated, (uniform * UNITS).long(), right=True)
        return word_pairs(self.inputs.weight, self.outputs.weight, given, target, drawn.where(drawn != target[:, None], -1))

    def mean_of(self, input_ids: Tensor) -> Tensor:
        """h (B, D) of words (B, C), of which -1 are left out."""
        return mean_of_tokens(self.inputs(input_ids.clamp_min(0)), input_ids >= 0)

    def predict(self, input_ids: Tensor) -> Tensor:
        """Logits (B, V) of the word that goes with words (B, C), as ``forward`` pairs them; -1 is left out, no word is -inf."""
        logits = F.linear(self.mean_of(input_ids), self.outputs.weight)
        if self.objective == "negative":  # <h, v_o> tells o from noise: log P(o | h) up to log P(noise = o)
            logits = logits + (self.power * self.counts.log()).to(logits.dtype)
        return logits.masked_fill(self.counts == 0, -torch.inf)

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Vectors (B, D) of words (B,), or of texts (B, L): the mean over their words."""
        check_ids("Word2Vec", "input_ids", input_ids if input_ids.ndim > 1 else input_ids[None], len(self.counts), LONGEST)
        if input_ids.ndim == 1:
            return self.inputs(input_ids)
        return mean_of_tokens(self.inputs(input_ids), self.counts[input_ids] > 0 if attention_mask is None else attention_mask)

    @torch.no_grad()
    def most_similar(self, input_ids: Tensor, count: int = 10) -> tuple[Tensor, Tensor]:
        """The words of largest cosine to words (B,), themselves left out: cosines (B, count), falling, and ids (B, count)."""
        check_whole("Word2Vec", "count", count, 1, int((self.counts > 0).sum()))
        unit = F.normalize(self.inputs.weight, dim=1)
        cosines = F.linear(unit[input_ids], unit).masked_fill(self.counts == 0, -torch.inf)
        found = cosines.scatter(1, input_ids[:, None], -torch.inf).topk(count)
        return found.values, found.indices
