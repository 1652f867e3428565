"""Sentences that Python ships, for sentence embeddings: the language reference (``pydoc_data.topics``) and docstrings.

``sentences``  single sentences, for unsupervised SimCSE
``pairs``      (sentence, the one after it in its paragraph)
``triples``    (sentence, the one after it in its paragraph, the most similar one of another document by shared words)

A document (one topic of the reference, one module) lies wholly in the train or in the test half; a sentence occurs once.
"""

import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.train import UsageError
from fastssl.train.samples import Samples
from fastssl.train.text import PieceTokenizer, WordTokenizer

Paragraph = tuple[str, list[str]]  # name of the document, sentences in reading order
VOCABULARY = 4000
LEAST = 200  # sentences of a half; a Python without its sources has fewer

TEST_SHARE = 8  # one document in eight is a test document
WORDS = (6, 40)  # shorter pieces are headings and list items, longer ones tables
LEFT_OUT = ("dist-packages", "encodings", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "turtledemo")
DOCSTRING = re.compile(r'"{3}(.*?)"{3}', re.DOTALL)
MARKUP = (
    (re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^>`]*>)?`"), r"\1"),  # :func:`len`
    (re.compile(r"`+([^`]*)`+_{0,2}"), r"\1"),
    (re.compile(r"\*\*?(\S[^*]*?)\*\*?"), r"\1"),
    (re.compile(r"\[[^\]\s]+\]_?"), ""),  # footnotes
    (re.compile(r"\s+"), " "),
)
CODE = re.compile(r"::=|>>>|^\.\.\s|^\W{3,}$|^[-*#•|+] ?|^\w+\(|[ \t]{3,}\S|={2,}|->|\\n|https?:", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<![.\s]\w)(?<!e\.g|i\.e|etc|cf\.)[.!?]['\")]*\s+(?=[A-Z\"'(])")
PROSE = re.compile(r"[A-Z\"'(].*[.!?]['\")]*$")


class TokenRows(Samples):
    """Token ids (N, L), or (N, K, L) for K sentences that belong together, 0 is padding; groups (N,) int64."""

    def __init__(self, tokens: Tensor, groups: Tensor):
        self.tokens, self.groups = tokens, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Token ids, without columns that are padding in all of them, and groups."""
        tokens = self.tokens[indices]
        used = (tokens != 0).flatten(0, -2).any(0)
        return tokens[..., used], self.groups[indices]


@dataclass(frozen=True)
class SentenceData:
    """Training rows, and single test sentences with the questions about them; groups are paragraphs, of ``test`` documents."""

    name: str
    train: TokenRows
    test: TokenRows
    parts: Tensor  # (N, L) int64: every third word of each test sentence
    neighbours: Tensor  # (M, 2) int64: rows of test that follow each other in a paragraph
    documents: tuple[str, ...]
    vocabulary: int
    words: tuple[str, ...] = ()  # of the ids, where these are whole words

    def summary(self) -> str:
        tokens = self.train.tokens
        what = "sentences" if tokens.ndim == 2 else f"{ {2: 'pairs', 3: 'triples'}[tokens.shape[1]] } of sentences"
        counts = f"{len(self.train)} training {what} and {len(self.test)} test sentences"
        return f"{counts} from {len(self.documents)} other documents"


def documents() -> Iterator[tuple[str, str]]:
    """(name, text) of each topic of the language reference, then of each module of the standard library."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:  # some distributions leave it out
        pass
    else:
        yield from sorted(topics.items())
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if file.parent.name not in LEFT_OUT:
            text = file.read_text(encoding="utf-8", errors="ignore")
            yield f"{file.parent.name}/{file.stem}", "\n\n".join(map(cleandoc, DOCSTRING.findall(text)))


def split_sentences(paragraph: str) -> list[str]:
    """Plain sentences of a paragraph of reStructuredText, without its markup; [] for code, grammar, tables, headings."""
    text = "\n".join(line.strip() for line in paragraph.strip("\n").splitlines())
    if CODE.search(text):
        return []
    for pattern, plain in MARKUP:
        text = pattern.sub(plain, text)
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    return [text[a:b].strip() for a, b in pairwise(ends)]


def is_prose(sentence: str) -> bool:
    words = sentence.split()
    letters = sum(c.isalpha() or c == " " for c in sentence)
    return WORDS[0] <= len(words) <= WORDS[1] and letters > 0.85 * len(sentence) and PROSE.match(sentence) is not None


def paragraphs() -> tuple[list[Paragraph], list[Paragraph]]:
    """Train and test paragraphs of prose, every sentence once, split by document."""
    seen: set[str] = set()
    train: list[Paragraph] = []
    test: list[Paragraph] = []
    count = 0
    for name, text in documents():
        found = []
        for paragraph in re.split(r"\n\s*\n", text):
            kept = []
            for sentence in split_sentences(paragraph):
                if is_prose(sentence) and sentence.lower() not in seen:
                    seen.add(sentence.lower())
                    kept.append(sentence)
            if kept:
                found.append((name, kept))
        count += bool(found)
        (train if count % TEST_SHARE else test).extend(found)
    if min(sum(len(p) for _, p in half) for half in (train, test)) < LEAST:
        raise UsageError("--data: this Python has neither pydoc_data nor the sources of its standard library")
    return train, test


def flat(half: list[Paragraph]) -> tuple[list[str], np.ndarray, list[str]]:
    """Sentences, the index of each one's paragraph, and the name of its document."""
    rows = [(sentence, i, name) for i, (name, found) in enumerate(half) for sentence in found]
    texts, groups, names = zip(*rows, strict=True)
    return list(texts), np.array(groups), list(names)


def following(groups: np.ndarray) -> np.ndarray:
    """(M, 2): rows i, i + 1 of one paragraph."""
    first = np.flatnonzero(groups[1:] == groups[:-1])
    return np.stack([first, first + 1], axis=1)


def hard_negatives(texts: list[str], names: list[str], rows: np.ndarray) -> np.ndarray:
    """For each of ``rows`` the sentence of another document with the most similar words (TF-IDF): (M,) indices."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(stop_words="english", dtype=np.float32).fit_transform(texts)
    document = np.unique(names, return_inverse=True)[1]
    found = []
    for part in np.array_split(rows, max(1, len(rows) // 500)):
        similarity = (words[part] @ words.T).toarray()
        similarity[document[part][:, None] == document] = -1.0
        found.append(similarity.argmax(1))
    return np.concatenate(found)


def sentences(name: str = "sentences", *, pieces: bool = True, length: int = 24) -> SentenceData:
    """``sentences``, ``pairs`` or ``triples``, the same on every call; tokens are pieces of words or whole words."""
    halves = paragraphs()
    (texts, groups, names), (test_texts, test_groups, test_names) = map(flat, halves)
    tokenizer = (PieceTokenizer if pieces else WordTokenizer)(texts, VOCABULARY)
    tokens, test_tokens = tokenizer(texts, length), tokenizer(test_texts, length)
    parts = tokenizer([" ".join(text.split()[::3]) for text in test_texts], length)
    if name in ("pairs", "triples"):
        rows = pairs = following(groups)
        if name == "triples":
            rows = np.column_stack([pairs, hard_negatives(texts, names, pairs[:, 0])])
        tokens, groups = tokens[torch.from_numpy(rows)], groups[pairs[:, 0]]
    documents, document = np.unique(test_names, return_inverse=True)
    return SentenceData(
        name,
        TokenRows(tokens, torch.from_numpy(groups)),
        TokenRows(test_tokens, torch.from_numpy(document)),
        parts,
        torch.from_numpy(following(test_groups)),
        tuple(documents.tolist()),
        VOCABULARY,
        tokenizer.words,
    )
