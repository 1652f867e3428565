"""Text as language models read it: the sentences of Python's documentation document after document, cut into rows of one length.

A document is [CLS], then its sentences, each with [SEP] behind it. Rows go on over the ends of documents, and a rest that fills no
row is left out. Train and test half are those of ``sentences``: no document is in both.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby

import torch
from torch import Tensor

from fastssl.train.sentences import VOCABULARY, Paragraph, SentenceData, TokenRows, flat, paragraphs, sentences
from fastssl.train.text import CLS, PAD, PieceTokenizer, WordTokenizer

LONGEST = 160  # tokens of a sentence; the longest has 40 words


@dataclass(frozen=True)
class StreamData:
    """Rows of tokens (N, L) without padding, and ``sentences``, which the embeddings are asked about; groups are documents."""

    name: str
    train: TokenRows
    test: TokenRows
    sentences: SentenceData
    vocabulary: int

    def summary(self) -> str:
        length, tokens = self.train.tokens.shape[1], self.test.tokens.numel()
        documents = len(self.sentences.documents)
        return f"{len(self.train)} training rows of {length} tokens and {tokens} test tokens from {documents} other documents"


def rows_of(half: list[Paragraph], tokenizer: PieceTokenizer | WordTokenizer, length: int) -> TokenRows:
    """Paragraphs in reading order -> rows (N, length), and the document that each row begins in."""
    stream: list[Tensor] = []
    documents: list[Tensor] = []
    for number, (_, found) in enumerate(groupby(half, key=lambda paragraph: paragraph[0])):
        texts = [sentence for _, kept in found for sentence in kept]
        ids = tokenizer(texts, LONGEST)[:, 1:]
        ids = torch.cat([torch.tensor([CLS]), ids[ids != PAD]])
        stream.append(ids)
        documents.append(torch.full_like(ids, number))
    rows, groups = (torch.cat(part)[: sum(map(len, part)) // length * length].view(-1, length) for part in (stream, documents))
    return TokenRows(rows, groups[:, 0].contiguous())


def streams(length: int = 48) -> StreamData:
    """The same on every call: pieces of words where ``tokenizers`` is installed, else whole words."""
    pieces = find_spec("tokenizers") is not None
    train, test = paragraphs()
    tokenizer = (PieceTokenizer if pieces else WordTokenizer)(flat(train)[0], VOCABULARY)
    rows, test_rows = (rows_of(half, tokenizer, length) for half in (train, test))
    return StreamData("sentences", rows, test_rows, sentences(pieces=pieces), VOCABULARY)
