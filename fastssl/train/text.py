"""Text for the methods that read it: tokenisers made from the training text itself, and a small transformer.

Token ids are int64, 0 is padding; a text's attention mask is ``ids != 0``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.methods._encoder import mean_of_tokens
from fastssl.train import broken_torchvision_hidden

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNK, CLS, SEP = range(4)


def pad(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """Lists of ids -> (N, L) int64 filled up with 0, L the longest of them, at most ``length``."""
    width = min(length, max((len(row) for row in rows), default=1))
    ids = torch.full((len(rows), width), PAD, dtype=torch.int64)
    for row, values in zip(ids, rows, strict=True):
        kept = list(values)[:width]
        row[: len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return ids


class WordTokenizer:
    """Lower-case words and punctuation marks, the ``size`` most frequent of the given texts; all others are one unknown."""

    def __init__(self, texts: Iterable[str], size: int = 4000):
        counts = Counter(word for text in texts for word in self.split(text))
        kept = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(SPECIAL)]
        self.ids = {word: i for i, word in enumerate(kept, start=len(SPECIAL))}
        self.words = (*SPECIAL, *kept)

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    def __len__(self) -> int:
        return len(self.ids) + len(SPECIAL)

    def __call__(self, texts: Iterable[str], length: int = 64) -> Tensor:
        """Texts -> (N, L) int64: [CLS], the words, [SEP], padding; cut at ``length``."""
        rows = ([self.ids.get(word, UNK) for word in self.split(text)][: length - 2] for text in texts)
        return pad([[CLS, *row, SEP] for row in rows], length)


class PieceTokenizer:
    """Byte-pair encoding, trained on the given texts by Hugging Face's ``tokenizers``; called like ``WordTokenizer``.

    Not WordPiece: its trainer numbers pieces in the order of a hash table, so that every run has another vocabulary.
    """

    words: tuple[str, ...] = ()  # its tokens are none

    def __init__(self, texts: Iterable[str], size: int = 4000):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

        self.tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
        self.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
        )
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
        self.tokenizer.train_from_iterator(texts, trainer)
        ends = [(SPECIAL[CLS], CLS), (SPECIAL[SEP], SEP)]
        self.tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def __call__(self, texts: Iterable[str], length: int = 64) -> Tensor:
        self.tokenizer.enable_truncation(length)
        return pad([encoded.ids for encoded in self.tokenizer.encode_batch(list(texts))], length)


class TextTransformer(nn.Module):
    """A small pre-norm transformer with the call of a Hugging Face encoder.

    (input_ids (B, L) int64, attention_mask (B, L) of 1 and 0) -> ``.last_hidden_state`` (B, L, width); L <= ``length``.
    """

    def __init__(self, vocabulary: int, width: int = 128, depth: int = 2, heads: int = 4, length: int = 64, dropout: float = 0.1):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.config = SimpleNamespace(hidden_size=width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        if input_ids.shape[1] > len(self.positions):
            raise ValueError(f"TextTransformer: made for texts of {len(self.positions)} tokens, got {input_ids.shape[1]}")
        mask = input_ids != PAD if attention_mask is None else attention_mask.bool()
        hidden = self.dropout(self.tokens(input_ids) + self.positions[: input_ids.shape[1]])
        return SimpleNamespace(last_hidden_state=self.norm(self.blocks(hidden, src_key_padding_mask=~mask)))


class MeanText(nn.Module):
    """Mean over the real tokens of any encoder with a Hugging Face call: tokens (B, L), 0 is padding, -> (B, F)."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder, self.num_features = encoder, encoder.config.hidden_size

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != PAD).to(torch.int64)
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return mean_of_tokens(hidden, mask)


def small_bert(vocabulary: int, width: int = 128, depth: int = 2, heads: int = 4, length: int = 64) -> nn.Module:
    """``transformers.BertModel`` with fresh weights and without its pooler."""
    with broken_torchvision_hidden():
        from transformers import BertConfig, BertModel
    config = BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return BertModel(config, add_pooling_layer=False)
