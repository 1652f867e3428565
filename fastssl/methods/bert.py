"""Masked language model (Devlin et al. 2019, section 3.1): name the words that were hidden.

15 % of the tokens are selected; of these 80 % become [MASK], 10 % a random token, 10 % stay. With h the encoder's output,

    logits = E norm(gelu(W h)) + b, E the tokens' embedding        loss = mean over selected places of -log softmax(logits)_token

Only the selected places go through the head: 15 % of the largest product. The blocks are pre-norm, where the paper's are post-norm.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_dense, check_number, check_whole, readable
from fastssl.masking import mask_tokens
from fastssl.ops._random import seed_of

from ._block import Block, check_heads, init_linear
from ._checks import check_widths
from ._encoder import mean_of_tokens

IGNORED = -100


class BERT(nn.Module):
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
        super().__init__()
        if not isinstance(special_ids, tuple | list | set | range):
            raise TypeError(f"BERT: special_ids must be a list of tokens, got {type(special_ids).__name__}")
        check_widths("BERT", vocab_size=vocab_size, width=width, depth=depth, heads=heads, length=length)
        check_heads("BERT", "width", width, "heads", heads)
        for name, value in (("mask_id", mask_id), ("pad_id", pad_id), *(("special_ids", value) for value in special_ids)):
            check_whole("BERT", name, value, 0, vocab_size)
        check_number("BERT", "probability", probability)
        if not 0 < probability < 1:
            raise ValueError(f"BERT: probability must be above 0 and below 1, got {probability}")
        self.vocab_size, self.mask_id, self.pad_id, self.probability = vocab_size, mask_id, pad_id, probability
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.special_ids: Tensor
        special = torch.tensor(sorted({pad_id, *special_ids}))
        self.register_buffer("special_ids", special, persistent=False)
        self.apply(init_linear)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids (N, L) int64, attention_mask (N, L), 0 = padding -> hidden states (N, L, width). None: ``ids != pad_id``."""
        mask = self.check(input_ids, attention_mask)
        x = self.norm_pre(self.tokens(input_ids) + self.positions[: input_ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return self.norm(x)

    def check(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask (N, L) bool. A text without any token looks at its first place: an empty softmax is NaN."""
        check_dense("BERT", "input_ids", input_ids, "int64 (N, L)")
        if input_ids.dtype != torch.int64:
            raise TypeError(f"BERT: input_ids must be int64 (N, L), got {input_ids.dtype}")
        length = len(self.positions)
        if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.shape[1] > length:
            raise ValueError(f"BERT: input_ids must have shape (N, L), L from 1 to {length}, got {tuple(input_ids.shape)}")
        if readable(input_ids):
            low, high = (int(t) for t in input_ids.aminmax())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(f"BERT: input_ids must be in [0, {self.vocab_size}), got {low if low < 0 else high}")
        if attention_mask is not None:
            check_dense("BERT", "attention_mask", attention_mask)
        if attention_mask is None:
            mask = input_ids != self.pad_id
        elif attention_mask.shape != input_ids.shape:
            given = tuple(attention_mask.shape)
            raise ValueError(f"BERT: attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, got {given}")
        else:
            mask = attention_mask.bool()
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return mask | (first & ~mask.any(1, keepdim=True))

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
        hidden, labels = mask_tokens(
            input_ids,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            probability=self.probability,
            special=torch.isin(input_ids, self.special_ids) | ~mask,
            ignore_index=IGNORED,
            seed=seed_of("BERT", seed, generator, input_ids.device),
        )
        chosen = labels != IGNORED
        rows = self.head(self.encode(hidden, mask)[chosen])
        return F.linear(rows, self.tokens.weight, self.bias), labels[chosen]

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
        logits, labels = self.predict(input_ids, attention_mask, generator=generator, seed=seed)
        wide = accumulator_dtype(logits)
        return F.cross_entropy(logits.to(wide), labels, reduction="sum") / max(1, len(labels))

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings of texts.

        Args:
            input_ids: (N, L) int64.
            attention_mask: (N, L), 0 = padding. By default ``input_ids != pad_id``.

        Returns:
            (N, width), the mean over the tokens of each text.
        """
        hidden = self.encode(input_ids, attention_mask)
        return mean_of_tokens(hidden, input_ids != self.pad_id if attention_mask is None else attention_mask)
