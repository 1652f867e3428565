"""Masked language model (Devlin et al. 2019, section 3.1): name the words that were hidden.

15 % of the tokens are selected; of these 80 % become [MASK], 10 % a random token, 10 % stay. With h the encoder's output,

    logits = E norm(gelu(W h)) + b, E the tokens' embedding        loss = mean over selected places of -log softmax(logits)_token

Only the selected places go through the head: 15 % of the largest product. The blocks are pre-norm, where the paper's are post-norm.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_number, check_whole
from fastssl.masking import mask_tokens
from fastssl.ops._random import seed_of

from ._texts import IGNORED, TextEncoder


class BERT(TextEncoder):
    """A small BERT with its masked language model: ``BERT(vocab_size, mask_id=...)(input_ids)`` is the loss.

    Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1.

    Args:
        vocab_size: size V of the vocabulary, the mask token included.
        mask_id: token in [0, V) that stands for a hidden one.
        special_ids: tokens that are never hidden, such as those of the ends of a text; ``pad_id`` is always one of them.
        pad_id: token that fills up short texts; no token attends to it.
        width, depth, heads: width, number of blocks and heads of the encoder.
        length: longest text in tokens.
        probability: share of the tokens that is selected, above 0 and below 1.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ids outside of the vocabulary, a width that is no multiple of ``heads``, a probability not in (0, 1).

    Examples:
        >>> method = BERT(vocab_size=50, mask_id=49, width=8, depth=1, heads=2, length=16)
        >>> tokens = torch.randint(1, 49, (5, 12))
        >>> method(tokens, seed=0).shape, method.embed(tokens).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        mask_id: int,
        special_ids: Sequence[int] = (),
        pad_id: int = 0,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        length: int = 64,
        probability: float = 0.15,
    ):
        super().__init__(vocab_size, pad_id, width, depth, heads, length)
        if not isinstance(special_ids, tuple | list | set | range):
            raise TypeError(f"BERT: special_ids must be a list of tokens, got {type(special_ids).__name__}")
        for name, value in (("mask_id", mask_id), *(("special_ids", value) for value in special_ids)):
            check_whole("BERT", name, value, 0, vocab_size)
        check_number("BERT", "probability", probability)
        if not 0 < probability < 1:
            raise ValueError(f"BERT: probability must be above 0 and below 1, got {probability}")
        self.mask_id, self.probability = mask_id, probability
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.special_ids: Tensor
        special = torch.tensor(sorted({pad_id, *special_ids}))
        self.register_buffer("special_ids", special, persistent=False)
        self.init_weights()

    def hide(self, input_ids: Tensor, mask: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids (N, L), mask (N, L) bool -> the ids with hidden tokens, and the labels (N, L), ``IGNORED`` where none is."""
        return mask_tokens(
            input_ids,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            probability=self.probability,
            special=torch.isin(input_ids, self.special_ids) | ~mask,
            ignore_index=IGNORED,
            seed=seed,
        )

    def name_tokens(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (N, L, width), labels (N, L) -> logits (M, V) of the M selected places, and their tokens (M,)."""
        chosen = labels != IGNORED
        return F.linear(self.head(hidden[chosen]), self.tokens.weight, self.bias), labels[chosen]

    def predict(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (M, V) of the M selected places and the tokens (M,) that they had, row by row."""
        mask = self.check(input_ids, attention_mask)
        ids, labels = self.hide(input_ids, mask, seed_of("BERT", seed, generator, input_ids.device))
        return self.name_tokens(self.encode(ids, mask), labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch of texts.

        Args:
            input_ids: (N, L) int64, L at most ``length``.
            attention_mask: (N, L), 0 = padding. By default ``input_ids != pad_id``.
            generator, seed: what the selection is drawn from, as in ``fastssl.masking.mask_tokens``.

        Returns:
            Scalar float32, the mean over the selected tokens; 0 where none was selected.

        Raises:
            TypeError: ``input_ids`` that are not int64.
            ValueError: another shape, a text that is too long or, where the host can see it, a token outside of the vocabulary.
        """
        return named_loss(*self.predict(input_ids, attention_mask, generator=generator, seed=seed))


def named_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (M, V) and labels (M,); 0 where M is 0."""
    return F.cross_entropy(logits.to(accumulator_dtype(logits)), labels, reduction="sum") / max(1, len(labels))
