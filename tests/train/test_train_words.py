"""word2vec in ``fastssl train``: training for real, resume, options."""

import dataclasses
from functools import cache

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, train_briefly

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

# architecture: least gains in the pairs told from noise and in the plurals among the ten nearest; at most half of what was seen
GAINS = {"skip-gram": (0.06, 0.05), "cbow": (0.1, 0.08)}


def every(data, share: int, test_share: int):
    """Every ``share``-th training and ``test_share``-th test sentence."""
    from fastssl.train.sentences import TokenRows

    part = lambda half, step: TokenRows(half.tokens[::step], half.groups[::step])  # noqa: E731
    return dataclasses.replace(data, train=part(data.train, share), test=part(data.test, test_share))


@pytest.mark.parametrize("architecture", of_today(tuple(GAINS), 2))
def test_vectors_tell_the_words_around_and_find_plurals(architecture):
    options = {"architecture": architecture, "batch_size": 128, "negatives": 3}
    found = train_briefly("word2vec", epochs=6, share=1, test_share=1, part=every, rate=2e-2, **options)
    told, plural = GAINS[architecture]
    assert found.before["told"] == pytest.approx(0.5, abs=0.02) and found.before["plural"] < 0.03
    assert found.after["told"] > found.before["told"] + told
    assert found.after["plural"] > found.before["plural"] + plural
    assert found.after["reciprocal"] > found.before["commonest"]


@cache
def few_sentences():
    from fastssl.train.sentences import sentences

    data = sentences(pieces=False)
    return every(data, 16, 16)


@pytest.mark.parametrize("objective", of_today(("negative", "softmax"), 2))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(objective, tmp_path, capsys, monkeypatch):
    data = few_sentences()
    monkeypatch.setattr("fastssl.train.sentences.sentences", lambda *given, **how: data)
    options = ["word2vec", "--batch-size", "200", "--dim", "4", "--objective", objective]
    assert_resumes_bit_for_bit(options, tmp_path, capsys, said=("word2vec, ", "told", "rank", "plural"))


def test_the_optimizer_fits_the_gradients():

    from fastssl.methods import Word2Vec
    from fastssl.optim import AdamW, SparseAdam
    from fastssl.train.optimizers import make_optimizer
    from fastssl.train.recipes import RECIPES

    for objective, optimizer, kind in (
        ("negative", "adamw", SparseAdam),
        ("softmax", "adamw", AdamW),
        ("negative", "sgd", torch.optim.SGD),
        ("softmax", "sgd", torch.optim.SGD),
    ):
        config = RECIPES["word2vec"].settings(objective=objective, optimizer=optimizer, weight_decay=0.1)
        method = Word2Vec(torch.tensor([0, 3, 2]), 4, objective=objective)
        made = make_optimizer(config, method, list(method.parameters()), [], 0.1)
        assert type(made) is kind
        method(torch.tensor([[1, 2, 1, 2]])).backward()
        made.step()
    mixed = torch.nn.Sequential(torch.nn.Embedding(3, 2, sparse=True), torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"sparse for all parameters or for none, got dense ones for 1\.weight"):
        make_optimizer(config, mixed, list(mixed.parameters()), [], 0.1)
