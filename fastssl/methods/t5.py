"""Span corruption (Raffel et al. 2020, section 3.1.4): a decoder writes the spans that were cut out of the encoder's text.

    text       Thank you for inviting me to your party last week
    inputs     Thank you <x_0> me to your party <x_1> week <end>
    targets    <x_0> for inviting <x_1> last <end>

With m the encoder's states of the inputs and h_t the decoder's state at target t, which looks at the targets before t and at m,

    loss = mean over t of -log softmax(E h_t)_{target_t}, E (V, D) the tokens' embeddings

The sentinels x_k are the last tokens of the vocabulary, x_k = V - 1 - k. Positions are learned; the paper's are relative.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole
from fastssl.masking import corrupt_spans, span_lengths
from fastssl.ops._random import seed_of

from ._block import Block
from ._checks import check_widths
from ._texts import TextEncoder, check_ids, vocabulary_loss


class DecoderBlock(nn.Module):
    """Pre-norm block that looks at its own tokens up to each place, then at the encoder's states, before its last layers."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.block, self.heads = Block(width, heads), heads
        self.norm, self.query = nn.LayerNorm(width, 1e-6), nn.Linear(width, width)
        self.key_value, self.proj = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, causal: Tensor) -> Tensor:
        """x (N, T, D), memory (N, L, D), causal (T, T) bool -> (N, T, D)."""
        x = x + self.block.attn(self.block.norm1(x), causal)
        parts = (self.query(self.norm(x)), *self.key_value(memory).chunk(2, 2))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.block.mlp(self.block.norm2(x))


class T5(TextEncoder):
    """A small T5: ``T5(vocab_size, eos_id=...)(input_ids)`` is the loss.

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4.

    Args:
        vocab_size: size V of the vocabulary, the sentinels included: its last tokens, which no text has.
        eos_id: token that ends inputs and targets.
        pad_id: token that fills up short texts for ``embed``, and that the decoder starts from.
        width, depth, heads: width, number of blocks, and heads, of the encoder and of the decoder.
        length: longest text in tokens.
        density: share of the tokens that is cut out, in (0, 1).
        mean_span: mean number of tokens of a span, at least 1.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    Examples:
        >>> method = T5(vocab_size=50, eos_id=1, width=8, depth=1, heads=2, length=16)
        >>> tokens = torch.randint(2, 47, (5, 12))
        >>> method(tokens, seed=0).shape, method.embed(tokens).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        eos_id: int,
        pad_id: int = 0,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        length: int = 64,
        density: float = 0.15,
        mean_span: float = 3.0,
    ):
        check_widths("T5", length=length)
        check_number("T5", "density", density)
        check_number("T5", "mean_span", mean_span, 1.0)
        if not 0 < density < 1:
            raise ValueError(f"T5: density must be above 0 and below 1, got {density}")
        super().__init__(vocab_size, pad_id, width, depth, heads, length + 1)  # an end token more than a text has
        check_whole("T5", "eos_id", eos_id, 0, vocab_size)
        sides = span_lengths(max(2, length), density, mean_span, eos=False)
        self.spans = (sum(sides) - max(2, length)) // 2
        self.eos_id, self.density, self.mean_span = eos_id, density, mean_span
        self.decoder_positions = nn.Parameter(torch.empty(length + 1, width))
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.norm_pre, self.decoder_norm = nn.Identity(), nn.LayerNorm(width)
        self.init_weights(small=True)
        nn.init.normal_(self.decoder_positions, std=0.02)

    def corrupt(
        self, input_ids: Tensor, generator: torch.Generator | None = None, seed: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """input_ids (N, L) -> inputs (N, Li) and targets (N, Lt); see ``fastssl.masking.corrupt_spans``."""
        check_ids("T5", "input_ids", input_ids, self.vocab_size, len(self.positions) - 1, 2)
        return corrupt_spans(
            input_ids,
            sentinel_start=self.vocab_size - 1,
            eos_id=self.eos_id,
            density=self.density,
            mean_span=self.mean_span,
            seed=seed_of("T5", seed, generator, input_ids.device),
        )

    def decode(self, memory: Tensor, targets: Tensor) -> Tensor:
        """memory (N, L, width), targets (N, T) -> states (N, T, width), each of the targets before its own."""
        shifted = F.pad(targets[:, :-1], (1, 0), value=self.pad_id)
        x = self.tokens(shifted) + self.decoder_positions[: targets.shape[1]]
        causal = torch.ones(2 * targets.shape[1:], dtype=torch.bool, device=x.device).tril()
        for block in self.decoder:
            x = block(x, memory, causal)
        return self.decoder_norm(x)

    def predict(
        self, input_ids: Tensor, *, generator: torch.Generator | None = None, seed: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (M, V) of the M tokens that were cut out, each given those before it, and these tokens (M,), row by row."""
        inputs, targets = self.corrupt(input_ids, generator, seed)
        chosen = (targets < self.vocab_size - self.spans) & (targets != self.eos_id)
        hidden = self.decode(self.encode(inputs, torch.ones_like(inputs)), targets)
        return F.linear(hidden[chosen], self.tokens.weight), targets[chosen]

    def forward(self, input_ids: Tensor, *, generator: torch.Generator | None = None, seed: int | Tensor | None = None) -> Tensor:
        """The loss of a batch of texts.

        Args:
            input_ids: (N, L) int64 without padding, L from 2 to ``length``: T5 cuts its text into rows of one length.
            generator, seed: what the spans are drawn from, as in ``fastssl.masking.corrupt_spans``.

        Returns:
            Scalar float32, the mean over all targets, sentinels and end among them.

        Raises:
            TypeError: ``input_ids`` that are not int64.
            ValueError: another shape, a text that is too long or, where the host can see it, a token outside of the vocabulary.
        """
        inputs, targets = self.corrupt(input_ids, generator, seed)
        hidden = self.decode(self.encode(inputs, torch.ones_like(inputs)), targets)
        return vocabulary_loss(hidden.flatten(0, 1), self.tokens.weight, targets.flatten())
