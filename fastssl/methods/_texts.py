"""What the methods of text share: token embeddings, positions, pre-norm blocks, and the cross-entropy of a vocabulary.

    h = norm(block_K( .. block_1(norm_pre(E[ids] + P[:L])))), ids (N, L) int64, E (V, D), P (length, D), h (N, L, D)

``BERT`` looks at all places of a text, ``GPT`` at those before, and ``T5`` has one encoder that looks at all.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_dense, check_whole, readable

from ._block import Block, check_heads, init_linear
from ._checks import check_widths
from ._encoder import mean_of_tokens

IGNORED = -100


def check_kind(name: str, encoder: Any, kind: type, words: str) -> None:
    if not isinstance(encoder, kind):
        raise TypeError(f"{name}: encoder must be {words} of fastssl.methods, got {type(encoder).__name__}")


def check_ids(name: str, argument: str, ids: Tensor, vocab_size: int, length: int, least: int = 1) -> None:
    """Refuses what are no tokens (N, L) int64 in [0, ``vocab_size``), L from ``least`` to ``length``."""
    check_dense(name, argument, ids, "int64 (N, L)")
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: {argument} must be int64 (N, L), got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape or not least <= ids.shape[1] <= length:
        raise ValueError(f"{name}: {argument} must have shape (N, L), L from {least} to {length}, got {tuple(ids.shape)}")
    if readable(ids):
        low, high = (int(t) for t in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{name}: {argument} must be in [0, {vocab_size}), got {low if low < 0 else high}")


def check_pair(name: str, first: Tensor, second: Tensor, vocab_size: int, length: int, least: int) -> None:
    """Refuses what are no sentences (N, L) and (N, K) in [0, ``vocab_size``), N at least ``least``, that fit into ``length``."""
    for argument, ids in (("first", first), ("second", second)):
        check_ids(name, argument, ids, vocab_size, length, 2)
    if len(first) != len(second) or first.device != second.device:
        given = f"{len(first)} on {first.device} and {len(second)} on {second.device}"
        raise ValueError(f"{name}: first and second must have as many rows, on one device, got {given}")
    if len(first) < least:
        raise ValueError(f"{name}: first must have at least {least} rows, whose sentences are compared, got {len(first)}")
    if first.shape[1] + second.shape[1] - 1 > length:
        lengths = f"{first.shape[1]} and {second.shape[1]}"
        raise ValueError(f"{name}: first and second must have at most {length + 1} tokens together, got {lengths}")


def vocabulary_loss(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax(weight states)_label over the labels that are not ``IGNORED``; 0 where all are.

    states (M, D), weight (V, D), labels (M,) int64. Where torch has its linear cross-entropy (from 2.12 on), the logits (M, V) are
    never held at once; an older torch, and one that compiles, holds them.
    """
    states, weight = states.to(accumulator_dtype(states)), weight.to(accumulator_dtype(states))
    counted = (labels != IGNORED).sum().clamp_min(1)
    if hasattr(F, "linear_cross_entropy") and not torch.compiler.is_compiling():
        options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
        return F.linear_cross_entropy(states, weight, labels, reduction="sum", ignore_index=IGNORED, options=options) / counted
    return F.cross_entropy(F.linear(states, weight), labels, reduction="sum", ignore_index=IGNORED) / counted


class TextEncoder(nn.Module):
    """A small pre-norm transformer over tokens, of which a subclass says what it predicts.

    A subclass adds its heads and then calls ``init_weights``.
    """

    def __init__(self, vocab_size: int, pad_id: int, width: int, depth: int, heads: int, length: int):
        super().__init__()
        self.name = type(self).__name__
        check_widths(self.name, vocab_size=vocab_size, width=width, depth=depth, heads=heads, length=length)
        check_heads(self.name, "width", width, "heads", heads)
        check_whole(self.name, "pad_id", pad_id, 0, vocab_size)
        self.vocab_size, self.pad_id, self.feature_dim = vocab_size, pad_id, width
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.norm_pre: nn.Module = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def init_weights(self, small: bool = False) -> None:
        """Linear layers from Xavier's distribution, or ``small``: all weights from N(0, 0.02^2), as GPT-2's."""
        self.apply(init_linear)
        for part in self.modules() if small else ():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """Hidden states of texts.

        Args:
            input_ids: (N, L) int64, L at most ``length``.
            attention_mask: (N, L), 0 = padding. None: ``input_ids != pad_id``.
            extra: what is added to the tokens' embeddings, (N, L, width) or of a shape that fits it, such as those of segments.

        Returns:
            (N, L, width).
        """
        mask = self.check(input_ids, attention_mask)
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        x = self.norm_pre(x if extra is None else x + extra)
        looked_at = self.looked_at(mask)
        for block in self.blocks:
            x = block(x, looked_at)
        return self.norm(x)

    def looked_at(self, mask: Tensor) -> Tensor:
        """mask (N, L) bool of tokens -> which places each place looks at, (N, 1, 1, L) or (N, 1, L, L) bool."""
        return mask[:, None, None]

    def check(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask (N, L) bool. A text without any token looks at its first place: an empty softmax is NaN."""
        check_ids(self.name, "input_ids", input_ids, self.vocab_size, len(self.positions))
        if attention_mask is not None:
            check_dense(self.name, "attention_mask", attention_mask)
        if attention_mask is None:
            mask = input_ids != self.pad_id
        elif attention_mask.shape != input_ids.shape:
            given = tuple(attention_mask.shape)
            raise ValueError(f"{self.name}: attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, got {given}")
        else:
            mask = attention_mask.bool()
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return mask | (first & ~mask.any(1, keepdim=True))

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
