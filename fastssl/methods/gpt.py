"""Next token (Radford et al. 2018, 2019): a causal transformer names each token of a text from those before it.

    h = norm(block_K( .. block_1(E[x] + P))), place t looks at places up to t      loss = mean over t of -log softmax(E h_t)_x_t+1

x (N, L) tokens, E (V, D) the tokens' embeddings, which are the output's weights too, P (length, D) learned positions. The blocks
are pre-norm, and all weights start from N(0, 0.02^2), as GPT-2's. The logits (N L, V) are never held at once where torch has its
linear cross-entropy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole

from ._texts import IGNORED, TextEncoder, check_ids, vocabulary_loss


class GPT(TextEncoder):
    """A small GPT: ``GPT(vocab_size)(input_ids)`` is the loss, ``generate`` continues texts.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2; the first GPT is of 2018.

    Args:
        vocab_size: size V of the vocabulary.
        pad_id: token that fills up short texts; it is neither looked at nor predicted.
        width, depth, heads: width, number of blocks and heads of the transformer.
        length: longest text in tokens.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a width that is no multiple of ``heads``, or a ``pad_id`` outside of the vocabulary.

    Examples:
        >>> method = GPT(vocab_size=50, width=8, depth=1, heads=2, length=16)
        >>> tokens = torch.randint(1, 50, (5, 12))
        >>> method(tokens).shape, method.embed(tokens).shape, method.generate(tokens, 3).shape
        (torch.Size([]), torch.Size([5, 8]), torch.Size([5, 15]))
    """

    def __init__(self, vocab_size: int, *, pad_id: int = 0, width: int = 128, depth: int = 2, heads: int = 4, length: int = 64):
        super().__init__(vocab_size, pad_id, width, depth, heads, length)
        self.norm_pre = nn.Identity()
        self.init_weights(small=True)

    def looked_at(self, mask: Tensor) -> Tensor:
        """mask (N, L) bool -> (N, 1, L, L): each place looks at the tokens up to itself, and always at itself."""
        places = torch.arange(mask.shape[1], device=mask.device)
        before, own = places[:, None] > places, places[:, None] == places
        return (mask[:, None, None] & before) | own

    def states(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (N (L - 1), width) of all places but the last, and the tokens behind them, ``IGNORED`` for padding."""
        check_ids(self.name, "input_ids", input_ids, self.vocab_size, len(self.positions), 2)
        mask = self.check(input_ids, attention_mask)
        hidden = self.encode(input_ids[:, :-1], mask[:, :-1])
        return hidden.flatten(0, 1), torch.where(mask, input_ids, IGNORED)[:, 1:].flatten()

    def predict(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (M, V) of the M tokens that have one before them, and these tokens (M,), row by row."""
        hidden, labels = self.states(input_ids, attention_mask)
        chosen = labels != IGNORED
        return F.linear(hidden[chosen], self.tokens.weight), labels[chosen]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The loss of a batch of texts.

        Args:
            input_ids: (N, L) int64, L from 2 to ``length``.
            attention_mask: (N, L), 0 = padding. By default ``input_ids != pad_id``.

        Returns:
            Scalar float32, the mean over the tokens that have one before them; its exponential is the perplexity.

        Raises:
            TypeError: ``input_ids`` that are not int64.
            ValueError: another shape, a text that is too long or, where the host can see it, a token outside of the vocabulary.
        """
        hidden, labels = self.states(input_ids, attention_mask)
        return vocabulary_loss(hidden, self.tokens.weight, labels)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        count: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Texts with ``count`` more tokens, drawn one after another from the model.

        Args:
            input_ids: (N, L) int64, the beginnings, without padding, L from 1 to ``length``.
            count: number of tokens to add. Where a text gets longer than ``length``, the model sees its last tokens.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: tokens that can be drawn at each step, the likeliest ones; None: all.
            generator: what is drawn from; None: torch's default generator.

        Returns:
            (N, L + count) int64. The padding token is never drawn.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of its range.
        """
        check_ids(self.name, "input_ids", input_ids, self.vocab_size, len(self.positions))
        count = check_whole(self.name, "count", count, 0)
        check_number(self.name, "temperature", temperature, 0.0)
        top_k = self.vocab_size if top_k is None else min(check_whole(self.name, "top_k", top_k, 1), self.vocab_size)
        for _ in range(count):
            seen = input_ids[:, -len(self.positions) :]
            logits = F.linear(self.encode(seen, torch.ones_like(seen))[:, -1], self.tokens.weight).float()
            logits[:, self.pad_id] = -torch.inf
            best, ids = logits.topk(1 if temperature == 0 else top_k, dim=1)
            drawn = torch.multinomial((best / (temperature or 1.0)).softmax(1), 1, generator=generator)
            input_ids = torch.cat([input_ids, ids.gather(1, drawn)], 1)
        return input_ids
