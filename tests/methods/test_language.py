"""Pairs of sentences, GPT and T5: losses against plain formulas in float64, what they look at, what they refuse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.methods import BERT, GPT, T5, NextSentence, QuickThoughts, SentenceOrder, SkipThought
from fastssl.methods._texts import IGNORED, vocabulary_loss

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
SMALL = {"width": 16, "heads": 2, "depth": 2, "length": 20}


def bert(**how) -> BERT:
    torch.manual_seed(0)
    return BERT(50, **SMALL | {"mask_id": 49, "special_ids": (2, 3)} | how).double()


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(50, **SMALL).double()


def t5(**how) -> T5:
    torch.manual_seed(0)
    return T5(50, eos_id=1, **SMALL | {"density": 0.3, "mean_span": 2.0} | how).double()


def sentences(rows: int = 6, seed: int = 1) -> Tensor:
    """Texts between 2 and 3 of five to nine tokens, filled up with 0."""
    ids = torch.randint(4, 45, (rows, 9), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    for row in range(rows):
        end = 4 + (3 * row + seed) % 5
        ids[row, end], ids[row, end + 1 :] = 3, 0
    return ids


def assert_same(loss: Tensor, expected: Tensor, method: torch.nn.Module) -> None:
    """Equal values, and equal gradients of all parameters that either has a gradient of."""
    torch.testing.assert_close(loss, expected, **CLOSE)
    parameters = list(method.parameters())
    both = [torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True) for value in (loss, expected)]
    assert any(grad is not None for grad in both[0])
    for parameter, ours, theirs in zip(parameters, *both, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(zero if ours is None else ours, zero if theirs is None else theirs, rtol=1e-8, atol=1e-11)


# --- pairs of sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NextSentence, SentenceOrder])
def test_pairs_are_judged_one_by_one(kind):
    """Each pair alone, without padding, written out: [CLS] a [SEP] b [SEP], a segment for each, the class token's answer."""
    method, first, second = kind(bert(), mlm_weight=0.0).double(), sentences(12), sentences(12, seed=2)
    logits, answers, words = method.predict(first, second, seed=3)
    assert words == 0 and 0 < answers.sum() < len(answers)
    losses = []
    for i, answer in enumerate(answers.tolist()):
        a, b = first[i], second[i]
        found = []
        for j in range(len(first)) if kind is NextSentence and not answer else [i]:
            one, two = (a, second[j]) if kind is NextSentence or answer else (b, a)
            one, two = one[one != 0], two[two != 0][1:]
            segments = torch.cat([method.segments[0].expand(len(one), -1), method.segments[1].expand(len(two), -1)])
            hidden = method.encoder.encode(torch.cat([one, two])[None], extra=segments)
            found.append(method.head(hidden[:, 0])[0])
        near = [(row - logits[i]).abs().max().item() for row in found]
        best = min(range(len(near)), key=near.__getitem__)
        assert near[best] < 1e-10 and (kind is SentenceOrder or answer or best != i)
        losses.append(-F.log_softmax(found[best], 0)[answer])
    assert_same(method(first, second, seed=3), torch.stack(losses).mean(), method)


def test_pairs_also_name_hidden_tokens():
    method, first, second = SentenceOrder(bert(probability=0.4), mlm_weight=0.5).double(), sentences(), sentences(seed=2)
    logits, answers, words = method.predict(first, second, hide=True, seed=5)
    assert words > 1
    torch.testing.assert_close(method(first, second, seed=5), F.cross_entropy(logits, answers) + 0.5 * words, **CLOSE)
    assert method(first, second, seed=5) != method(first, second, seed=6)


def test_half_of_the_pairs_are_random_and_never_their_own():
    method = NextSentence(bert()).double()
    first, second = torch.full((4000, 2), 5), torch.arange(4000)[:, None].expand(-1, 2)
    bits = torch.randint(2**32, (4000,), generator=torch.Generator().manual_seed(0))
    _, shown, answers = method.shown(first, second, bits)
    own = shown[:, 0] == torch.arange(4000)
    assert torch.equal(own.long(), answers) and abs(answers.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("kind", [NextSentence, SentenceOrder])
def test_pairs_of_synthetic_texts_are_learned(kind):
    """Sentences of one of two kinds of words. The next one is of the same kind; of two of both kinds, those below 20 come first."""
    torch.manual_seed(0)
    method = kind(BERT(50, mask_id=49, width=32, depth=1, heads=2, length=12), mlm_weight=0.0)
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for _ in range(150):
        low, high = torch.randint(4, 20, (64, 5)), torch.randint(20, 40, (64, 5))
        which = torch.rand(64, 1) < 0.5
        pair = (low, high) if kind is SentenceOrder else [torch.where(which, low, high), torch.where(which, low, high).roll(1, 1)]
        if kind is NextSentence:
            pair[1] = torch.where(which, torch.randint(4, 20, (64, 5)), torch.randint(20, 40, (64, 5)))
        optimizer.zero_grad()
        method(*pair).backward()
        optimizer.step()
    with torch.no_grad():
        logits, answers, _ = method.predict(*pair, seed=0)
    right = (logits.argmax(1) == answers).double().mean().item()
    print(f"\n{kind.__name__}: {right:.3f}")
    assert right > (0.9 if kind is SentenceOrder else 0.6)  # half of the random sentences are of the same kind


def test_skip_thought_is_the_cross_entropy_of_both_neighbours():
    method, first, second = SkipThought(bert()).double(), sentences(), sentences(seed=2)
    z = [torch.stack([method.encoder.encode(row[row != 0][None])[0].mean(0) for row in ids]) for ids in (first, second)]
    losses = []
    for decoder, vectors, ids in ((method.after, z[0], second), (method.before, z[1], first)):
        for vector, row in zip(vectors, ids, strict=True):
            words = row[row != 0]
            given = torch.cat([method.norm(method.encoder.tokens(words[:-1])), vector.expand(len(words) - 1, -1)], 1)
            logits = decoder(given[None])[0][0] @ method.encoder.tokens.weight.T
            losses.append(F.cross_entropy(logits, words[1:], reduction="none"))
    assert_same(method(first, second), torch.cat(losses).mean(), method)
    logits, labels = method.predict(first, second)
    torch.testing.assert_close(F.cross_entropy(logits, labels), method(first, second), **CLOSE)


def test_quick_thoughts_is_the_cross_entropy_of_the_choice():
    method, first, second = QuickThoughts(bert()).double(), sentences(), sentences(seed=2)
    a, b = method.embed(first), method.embed(second)
    own = torch.arange(6)
    halves = [F.cross_entropy(method.of_sentence(x) @ method.of_neighbour(y).T, own) for x, y in ((a, b), (b, a))]
    assert_same(method(first, second), sum(halves) / 2, method)
    assert torch.equal(method.predict(first, second)[1], own)


# --- next tokens ----------------------------------------------------------------------------------------------------------


def test_gpt_is_the_cross_entropy_of_each_prefix():
    """Every token from the text before it, one prefix at a time and without padding."""
    method, ids = gpt(), sentences()
    losses = []
    for row in ids:
        words = row[row != 0]
        for end in range(1, len(words)):
            logits = method.encode(words[None, :end])[0, -1] @ method.tokens.weight.T
            losses.append(-F.log_softmax(logits, 0)[words[end]])
    assert_same(method(ids), torch.stack(losses).mean(), method)
    logits, labels = method.predict(ids)
    assert len(labels) == len(losses)
    torch.testing.assert_close(F.cross_entropy(logits, labels), method(ids), **CLOSE)
    assert torch.equal(method(ids, ids != 0), method(ids))


def test_gpt_does_not_look_ahead():
    method, ids = gpt(), torch.randint(4, 45, (3, 12))
    changed = ids.clone()
    changed[:, 7:] = torch.randint(4, 45, (3, 5))
    before, after = method.encode(ids), method.encode(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], **CLOSE)
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 1e-3


def test_gpt_without_anything_to_predict():
    method = gpt()
    loss = method(torch.tensor([[2, 0, 0], [0, 0, 0]]))
    loss.backward()
    assert loss.item() == 0.0 and all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    assert method.embed(torch.tensor([[0, 0, 4, 5], [0, 0, 0, 0]])).isfinite().all()


def test_gpt_generates_the_likeliest_tokens_and_those_of_its_distribution():
    method, ids = gpt(), torch.randint(4, 45, (2, 18))
    with torch.no_grad():
        method.tokens.weight.mul_(40)  # so that its distribution is not flat
    greedy = method.generate(ids, 5, temperature=0)
    expected = ids
    for _ in range(5):  # beyond the length of 20 it sees the last 20 tokens
        logits = method.encode(expected[:, -20:])[:, -1] @ method.tokens.weight.T
        logits[:, 0] = -math.inf
        expected = torch.cat([expected, logits.argmax(1, keepdim=True)], 1)
    assert torch.equal(greedy, expected)
    assert torch.equal(method.generate(ids, 5, top_k=1), greedy) and torch.equal(method.generate(ids, 0), ids)
    drawn = method.generate(ids[:1].expand(4000, -1), 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, -1]
    logits = method.encode(ids[:1])[0, -1] @ method.tokens.weight.T / 2.0
    logits[0] = -math.inf
    share, wanted = drawn.bincount(minlength=50) / 4000, logits.softmax(0)
    assert ((share - wanted).abs() < 5 * (wanted * (1 - wanted) / 4000).sqrt() + 1e-9).all()


@pytest.mark.parametrize("older", [False, True])
def test_vocabulary_loss_is_the_cross_entropy(older, monkeypatch):
    if older:
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    states, weight = (torch.randn(rows, 6, dtype=torch.float64, requires_grad=True) for rows in (30, 9))
    labels = torch.randint(9, (30,))
    labels[::4] = IGNORED
    loss, expected = vocabulary_loss(states, weight, labels), F.cross_entropy(F.linear(states, weight), labels)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (states, weight)), torch.autograd.grad(expected, (states, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(loss, expected, **CLOSE)
    half = vocabulary_loss(states.bfloat16(), weight.bfloat16(), labels)
    assert half.dtype == torch.float32 and abs(half.item() - expected.item()) < 0.05
    assert vocabulary_loss(states, weight, torch.full((30,), IGNORED)).item() == 0


# --- span corruption ------------------------------------------------------------------------------------------------------

PAPER = ("Thank", "you", "for", "inviting", "me", "to", "your", "party", "last")


def test_t5_cuts_out_the_papers_spans():
    """Figure 2 of Raffel et al.: some draw cuts out "for inviting" and "last". Rows end in a span, so "week" is left out."""
    ids = torch.arange(10, 19)[None]  # Thank ... last
    method = t5(density=3 / 9, mean_span=1.5)
    words = dict(zip(range(10, 19), PAPER, strict=True)) | {49: "<X>", 48: "<Y>", 1: "</s>"}
    found = set()
    for seed in range(60):
        found.add(tuple(" ".join(words[i] for i in part[0].tolist()) for part in method.corrupt(ids, seed=seed)))
    assert ("Thank you <X> me to your party <Y> </s>", "<X> for inviting <Y> last </s>") in found


def test_t5_is_the_cross_entropy_of_each_prefix_of_the_targets():
    method, ids = t5(), torch.randint(4, 40, (4, 16))
    inputs, targets = method.corrupt(ids, seed=2)
    losses, hidden = [], []
    for row, wanted in zip(inputs, targets, strict=True):
        memory = method.encode(row[None])
        for end in range(len(wanted)):
            state = method.decode(memory, wanted[None, : end + 1])[0, end]
            losses.append(-F.log_softmax(state @ method.tokens.weight.T, 0)[wanted[end]])
            if wanted[end] not in (1, 48, 49, 47, 46):
                hidden.append(losses[-1])
    assert_same(method(ids, seed=2), torch.stack(losses).mean(), method)
    logits, labels = method.predict(ids, seed=2)
    assert len(labels) == len(hidden) == 4 * round(0.3 * 16)
    torch.testing.assert_close(F.cross_entropy(logits, labels), torch.stack(hidden).mean(), **CLOSE)


def test_t5s_decoder_sees_the_inputs_and_no_later_target():
    method = t5()
    memory, targets = torch.randn(2, 9, 16, dtype=torch.float64), torch.randint(4, 40, (2, 8))
    changed = targets.clone()
    changed[:, 5:] += 1
    before, after = method.decode(memory, targets), method.decode(memory, changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], **CLOSE)  # the sixth one is named from five before it
    assert (before[:, 6:] - after[:, 6:]).abs().max() > 1e-4
    assert (method.decode(memory.flip(2), targets) - before).abs().amax((0, 2)).min() > 1e-4


# --- all of them ----------------------------------------------------------------------------------------------------------

MADE = {
    "NextSentence": lambda: NextSentence(bert()).double(),
    "SentenceOrder": lambda: SentenceOrder(bert()).double(),
    "SkipThought": lambda: SkipThought(gpt()).double(),
    "QuickThoughts": lambda: QuickThoughts(t5()).double(),
    "GPT": gpt,
    "T5": t5,
}


@pytest.mark.parametrize("name", MADE)
def test_embeddings_are_means_over_the_tokens(name):
    method, ids = MADE[name](), sentences()
    encoder = getattr(method, "encoder", method)
    for row, found in zip(ids, method.embed(ids), strict=True):
        torch.testing.assert_close(found, encoder.encode(row[row != 0][None])[0].mean(0), **CLOSE)
    assert method.embed(ids).shape == (6, method.feature_dim)


@pytest.mark.parametrize("name", MADE)
def test_chance_is_torchs_generator(name):
    method = copy.deepcopy(MADE[name]())
    given = (sentences(),) if name in ("GPT", "T5") else (sentences(), sentences(seed=2))
    losses = []
    for _ in range(2):
        torch.manual_seed(4)
        losses.append([method(*given).item() for _ in range(2)])
    assert losses[0] == losses[1]


BAD = [
    (lambda: NextSentence(gpt()), TypeError, "NextSentence: encoder must be a BERT of fastssl.methods, got GPT"),
    (lambda: SentenceOrder(bert(), mlm_weight=-1), ValueError, "SentenceOrder: mlm_weight"),
    (lambda: SkipThought(torch.nn.Linear(2, 2)), TypeError, "SkipThought: encoder must be a BERT, GPT or T5 .* got Linear"),
    (lambda: QuickThoughts(bert(), negatives="all"), ValueError, "QuickThoughts: negatives"),
    (lambda: NextSentence(bert())(sentences(1), sentences(1)), ValueError, "NextSentence: first must have at least 2 rows"),
    (lambda: NextSentence(bert())(sentences(3), sentences(2)), ValueError, "NextSentence: first and second must have as many rows"),
    (lambda: SentenceOrder(bert(length=12))(sentences(), sentences()), ValueError, "at most 13 tokens together, got 9 and 9"),
    (lambda: SentenceOrder(bert())(sentences(), sentences().float()), TypeError, "SentenceOrder: second must be int64"),
    (lambda: QuickThoughts(bert())(sentences(), sentences() + 40), ValueError, r"QuickThoughts: second must be in \[0, 50\)"),
    (lambda: GPT(50, width=9), ValueError, "GPT: width must be a multiple"),
    (lambda: GPT(50, pad_id=50), ValueError, r"GPT: pad_id must be in \[0, 50\)"),
    (lambda: gpt()(sentences()[:, :1]), ValueError, r"GPT: input_ids must have shape \(N, L\), L from 2 to 20"),
    (lambda: gpt()(sentences().repeat(1, 3)), ValueError, "GPT: input_ids"),
    (lambda: gpt().generate(sentences(), -1), ValueError, "GPT: count"),
    (lambda: gpt().generate(sentences(), 2, top_k=0), ValueError, "GPT: top_k"),
    (lambda: gpt().generate(sentences(), 2, temperature=-1), ValueError, "GPT: temperature"),
    (lambda: T5(50, eos_id=50), ValueError, r"T5: eos_id must be in \[0, 50\)"),
    (lambda: t5(density=1.0), ValueError, "density"),
    (lambda: t5(mean_span=0.5), ValueError, "mean_span"),
    (lambda: t5()(torch.full((2, 21), 5)), ValueError, r"T5: input_ids must have shape \(N, L\), L from 2 to 20"),
]


@pytest.mark.parametrize("call, kind, said", BAD)
def test_what_is_wrong_is_refused(call, kind, said):
    with pytest.raises(kind, match=said):
        call()
