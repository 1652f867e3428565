"""mask_tokens, corrupt_spans, span_mask: shares, labels, T5's layout and lengths, runs, backends, refusals."""

from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import peers
from fastssl.masking import corrupt_spans, mask_tokens, span_lengths, span_mask
from fastssl.reference.mask_tokens import mask_tokens as reference

pytestmark = pytest.mark.usefixtures("one_thread")
SEED = st.integers(-(2**63), 2**63 - 1)
BERT = {"mask_id": 103, "vocab_size": 30522}


def examples(count: int):
    return settings(max_examples=count, deadline=None, database=None, derandomize=True)


def within(share, expected: float, count: int, sigmas: float = 4.5) -> bool:
    return abs(float(share) - expected) <= sigmas * (expected * (1 - expected) / count) ** 0.5 + 1e-12


# --- mask_tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability, hidden, swapped", [(0.15, 0.8, 0.1), (0.4, 0.5, 0.5), (1.0, 0.0, 0.3), (0.02, 1.0, 0.0)])
def test_shares(probability, hidden, swapped):
    """Ids above the vocabulary, so that a random id is never the token itself; mask_id above both."""
    ids = torch.randint(1000, 2000, (400, 513))
    how = {"mask_id": 5000, "vocab_size": 1000, "probability": probability, "mask_share": hidden, "random_share": swapped}
    inputs, labels = mask_tokens(ids, seed=11, **how)
    chosen = labels != -100
    count = int(chosen.sum())
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(inputs[~chosen], ids[~chosen])
    assert within(chosen.double().mean(), probability, ids.numel())
    kinds = inputs[chosen] == 5000, inputs[chosen] < 1000, inputs[chosen] == ids[chosen]
    assert sum(int(kind.sum()) for kind in kinds) == count
    for kind, share in zip(kinds, (hidden, swapped, 1 - hidden - swapped), strict=True):
        assert within(kind.double().mean(), share, count)
    places = chosen.double().mean(0)
    assert ((places - probability).abs() < 5.5 * (probability * (1 - probability) / 400) ** 0.5 + 1e-12).all()


def test_random_ids_are_uniform():
    inputs, _ = mask_tokens(torch.zeros(500, 400, dtype=torch.int64), mask_id=0, vocab_size=50, probability=1.0, mask_share=0.0,
                            random_share=1.0, seed=1)  # fmt: skip
    counts = torch.bincount(inputs.flatten(), minlength=50)
    assert len(counts) == 50 and all(within(share, 1 / 50, 200_000) for share in (counts / 200_000).tolist())


def test_neighbours_are_chosen_on_their_own():
    _, labels = mask_tokens(torch.ones(800, 300, dtype=torch.int64), probability=0.3, seed=2, **BERT)
    x = (labels != -100).double() - 0.3
    for step in range(1, 9):
        assert abs(float((x[:, step:] * x[:, :-step]).mean())) < 5 * 0.21 / (800 * (300 - step)) ** 0.5
    for step in (1, 2, 4):
        assert abs(float((x[step:] * x[:-step]).mean())) < 5 * 0.21 / (800 * 300 - 300 * step) ** 0.5


def test_shares_of_transformers():
    """transformers' collator on the same tokens: the same four shares."""
    transformers = pytest.importorskip("transformers")

    class Tokenizer:
        mask_token = "[MASK]"
        convert_tokens_to_ids = staticmethod(lambda token: 103)
        __len__ = staticmethod(lambda: 1000)

    collator = object.__new__(transformers.DataCollatorForLanguageModeling)
    collator.tokenizer, collator.mlm_probability, collator.generator = Tokenizer(), 0.15, None
    collator.mask_replace_prob, collator.random_replace_prob, collator.whole_word_mask = 0.8, 0.1, False
    ids, special = torch.randint(1000, 2000, (300, 500)), torch.rand(300, 500) < 0.1
    shares = []
    for inputs, labels in (
        collator.torch_mask_tokens(ids.clone(), special_tokens_mask=special),
        mask_tokens(ids, mask_id=103, vocab_size=1000, special=special, seed=3),
    ):
        chosen = labels != -100
        assert not (chosen & special).any() and torch.equal(labels[chosen], ids[chosen])
        masks, kept = chosen & (inputs == 103), chosen & (inputs == ids)
        shares.append([x.double().mean().item() for x in (chosen, masks, kept, chosen & ~masks & ~kept)])
    for ours, theirs in zip(*shares, strict=True):
        assert abs(ours - theirs) < 4.5 * (2 * theirs * (1 - theirs) / ids.numel()) ** 0.5


@examples(100)
@given(st.data(), st.integers(1, 5), st.integers(1, 30), SEED, st.integers(1, 2**32 - 1))
def test_every_backend_gives_the_same_tokens(data, rows, length, seed, vocab_size):
    ids = torch.randint(-(2**62), 2**62, (rows, length))
    special = data.draw(st.sampled_from([None, torch.rand(rows, length) < 0.5]))
    hide, swap, pick = sorted(data.draw(st.lists(st.integers(0, 2**32), min_size=3, max_size=3)))
    args = ids, special, torch.tensor(seed), 7, vocab_size, hide, swap, pick, -100
    before = ids.clone()
    for ours, theirs in zip(torch.ops.fastssl.mask_tokens(*args), reference(*args), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != ids.data_ptr()
    assert torch.equal(ids, before)


@examples(60)
@given(st.integers(1, 5), st.integers(1, 40), SEED, st.floats(0, 1))
def test_special_tokens_are_never_chosen(rows, length, seed, probability):
    ids = torch.randint(0, 30522, (rows, length))
    special = torch.rand(rows, length) < 0.5
    how = {"probability": probability, "seed": seed, "ignore_index": -1, **BERT}
    inputs, labels = mask_tokens(ids, special=special, **how)
    plain = mask_tokens(ids, **how)
    assert torch.equal(inputs[special], ids[special]) and (labels[special] == -1).all()
    assert torch.equal(inputs[~special], plain[0][~special]) and torch.equal(labels[~special], plain[1][~special])


def test_a_seed_decides_the_tokens():
    ids = torch.randint(0, 30522, (50, 64))
    first = mask_tokens(ids, seed=5, **BERT)[1]
    assert torch.equal(first, mask_tokens(ids, seed=torch.tensor(5), **BERT)[1])
    assert torch.equal(first, mask_tokens(ids.t().contiguous().t(), seed=torch.tensor([5]), **BERT)[1]), "strides"
    assert torch.equal(first[:7], mask_tokens(ids[:7], seed=5, **BERT)[1])
    assert not torch.equal(first, mask_tokens(ids, seed=6, **BERT)[1])
    torch.manual_seed(0)
    drawn = [mask_tokens(ids, **BERT)[1] for _ in range(2)]
    torch.manual_seed(0)
    assert torch.equal(drawn[0], mask_tokens(ids, **BERT)[1]) and not torch.equal(*drawn)
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(mask_tokens(ids, generator=generator, **BERT)[0], mask_tokens(ids, generator=again, **BERT)[0])
    same = mask_tokens(torch.zeros(200, 64, dtype=torch.int64), seed=5, **BERT)[1]
    assert same.unique(dim=0).shape[0] > 190, "rows differ"


def test_opcheck():
    ids, special = torch.randint(0, 9, (3, 10)), torch.rand(3, 10) < 0.5
    for never in (None, special):
        args = ids, never, torch.tensor(1), 1, 9, 2**29, 2**30, 2**31, -100
        torch.library.opcheck(torch.ops.fastssl.mask_tokens.default, args)


@pytest.mark.parametrize("call", [partial(mask_tokens, **BERT), partial(corrupt_spans, sentinel_start=99, eos_id=1)])
def test_compiled_whole(call):
    ids = torch.randint(0, 30522, (6, 40))
    compiled = torch.compile(lambda ids, seed: call(ids, seed=seed), fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        assert all(map(torch.equal, compiled(ids, torch.tensor(seed)), call(ids, seed=seed)))
    drawn = torch.compile(lambda ids: call(ids), fullgraph=True, backend="aot_eager")
    assert [t.shape for t in drawn(ids)] == [t.shape for t in call(ids, seed=0)]


# --- corrupt_spans ---------------------------------------------------------------------------------------------------------------

SENTINEL, EOS = 10_000, 7


def parts(row, eos) -> tuple[list, list]:
    """Tokens between sentinels, and the sentinels; the end token is taken off."""
    row = row.tolist()
    if eos:
        assert row.pop() == EOS
    pieces, sentinels = [[]], []
    for token in row:
        if token > 5000:
            sentinels.append(token)
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces, sentinels


@examples(150)
@given(st.integers(1, 4), st.integers(2, 80), st.floats(0.01, 0.99), st.floats(1, 8), st.booleans(), SEED)
def test_inputs_and_targets_are_the_text(rows, length, density, mean_span, eos, seed):
    ids = torch.randint(10, 5000, (rows, length))
    how = {"density": density, "mean_span": mean_span}
    before = ids.clone()
    found = corrupt_spans(ids, sentinel_start=SENTINEL, eos_id=EOS if eos else None, seed=seed, **how)
    assert tuple(t.shape[1] for t in found) == span_lengths(length, eos=eos, **how) and torch.equal(ids, before)
    noise = min(max(round(length * density), 1), length - 1)
    for text, inputs, targets in zip(ids, *found, strict=True):
        (*kept, last), left = parts(inputs, eos)
        (first, *hidden), right = parts(targets, eos)
        assert left == right == [SENTINEL - k for k in range(len(left))] and last == first == []
        assert all(kept) and all(hidden), "no span is empty"
        joined = [token for c, n in zip(kept, hidden, strict=True) for token in c + n]
        assert joined == text.tolist() and sum(map(len, hidden)) == noise
        assert len(hidden) == min(max(round(noise / mean_span), 1), noise, length - noise)


@pytest.mark.parametrize("length, density, mean_span, lengths", [
    (568, 0.15, 3.0, (512, 114)),  # T5's pretraining: 512 tokens of inputs
    (512, 0.15, 3.0, (462, 104)),
    (137, 0.15, 3.0, (124, 29)),
    (512, 0.5, 3.0, (342, 342)),
    (2, 0.15, 3.0, (3, 3)),
    (10, 0.25, 2.0, (10, 4)),  # round(2.5) = 2, to even
])  # fmt: skip
def test_lengths(length, density, mean_span, lengths):
    assert span_lengths(length, density, mean_span) == lengths
    assert span_lengths(length, density, mean_span, eos=False) == (lengths[0] - 1, lengths[1] - 1)


def test_every_cut_is_equally_likely_and_both_sides_are_independent():
    """L = 9, 4 noise tokens in 2 spans: 4 ways to cut the kept tokens times 3 for the noise."""
    count = 24000
    _, targets = corrupt_spans(
        torch.arange(1, 10).repeat(count, 1), sentinel_start=SENTINEL, eos_id=None, density=4 / 9, mean_span=2.0, seed=4
    )
    places, counts = targets.unique(dim=0, return_counts=True)
    assert len(places) == 12 and all(within(n / count, 1 / 12, count) for n in counts.tolist())


def test_a_seed_decides_the_spans():
    ids = torch.arange(100).repeat(40, 1)
    call = partial(corrupt_spans, ids, sentinel_start=SENTINEL, eos_id=None)
    first = call(seed=1)[0]
    assert torch.equal(first, call(seed=torch.tensor(1))[0]) and not torch.equal(first, call(seed=2)[0])
    assert torch.equal(first[:3], corrupt_spans(ids[:3], sentinel_start=SENTINEL, eos_id=None, seed=1)[0])
    assert first.unique(dim=0).shape[0] == 40
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(call(generator=generator)[0], call(generator=again)[0])
    torch.manual_seed(0)
    drawn = call()[0]
    torch.manual_seed(0)
    assert torch.equal(drawn, call()[0]) and not torch.equal(drawn, call()[0])


# --- spans -----------------------------------------------------------------------------------------------------------------


def runs(row) -> list[int]:
    """Lengths of the runs of True."""
    return [len(run) for run in "".join("01"[int(x)] for x in row).split("0") if run]


@examples(80)
@given(st.data(), st.integers(1, 6), st.integers(1, 60), st.floats(0, 1), st.integers(0, 4), SEED)
def test_spans(data, rows, length, probability, min_masks, seed):
    span = data.draw(st.integers(1, length))
    lengths = data.draw(st.none() | st.lists(st.integers(0, length), min_size=rows, max_size=rows).map(torch.tensor))
    how = {"probability": probability, "span": span, "min_masks": min_masks, "seed": seed}
    mask = span_mask(rows, length, lengths=lengths, **how)
    assert mask.dtype == torch.bool and mask.shape == (rows, length)
    for row, valid in zip(mask, [length] * rows if lengths is None else lengths.tolist(), strict=True):
        assert not row[valid:].any()
        found = runs(row)
        most = max(int(probability * valid + 1), min_masks)
        assert all(run >= span for run in found) and sum(found) <= most * span and len(found) <= most
        if span == 1:
            least = max(int(probability * valid - 1e-9), min_masks)
            assert min(least, valid) <= row.sum() <= min(most, valid)
        elif valid >= span and max(int(probability * valid - 1e-9), min_masks) > 0:
            assert found


def test_starts_are_rounded_at_random_and_lie_anywhere():
    count, length = 20000, 25
    mask = span_mask(count, length, probability=0.1, span=1, seed=1)
    assert set(mask.sum(1).tolist()) == {2, 3} and within((mask.sum(1) == 3).float().mean().item(), 0.5, count)
    assert all(within(share, 0.1, count) for share in mask.float().mean(0).tolist())
    lengths = torch.full((count,), 10)
    short = span_mask(count, length, probability=0.1, span=4, lengths=lengths, seed=1)
    first = short[:, :7].int().argmax(1)
    assert (short.sum(1) == 4).all() and all(within((first == k).float().mean().item(), 1 / 7, count) for k in range(7))


def test_spans_as_transformers_draws_them():
    pytest.importorskip("transformers")
    with suppress(ImportError):  # transformers imports torchvision where that is installed
        peers.ready_torchvision()
    from transformers.models.wav2vec2 import modeling_wav2vec2 as wav2vec2

    np.random.seed(0)
    count, length = 400, 500
    attention = (torch.arange(length) < torch.linspace(100, length, count).long()[:, None]).long()
    theirs = torch.stack(
        [torch.from_numpy(wav2vec2._compute_mask_indices((1, length), 0.65, 10, row[None], 2))[0] for row in attention]
    )
    ours = span_mask(count, length, lengths=attention.sum(1), min_masks=2, seed=0)
    a, b = (mask.double().sum(1) / attention.sum(1) for mask in (ours, theirs))
    assert abs(a.mean() - b.mean()) < 4.5 * ((a.var() + b.var()) / count).sqrt() and a.mean() > 0.4
    assert abs(a.std() / b.std() - 1) < 0.25


# --- refusals --------------------------------------------------------------------------------------------------------------------

IDS = torch.arange(12).reshape(2, 6)
MASK, SPANS = partial(mask_tokens, IDS, **BERT), partial(corrupt_spans, IDS, sentinel_start=99, eos_id=1)
WIDE, SPAN = partial(mask_tokens, IDS, mask_id=1), partial(span_mask, 2, 20)
META = torch.zeros((), dtype=torch.int64, device="meta")
REFUSED = [
    (lambda: mask_tokens([[1]], **BERT), TypeError, r"mask_tokens: ids must be an int64 tensor \(N, L\), got list"),
    (lambda: mask_tokens(IDS.int(), **BERT), TypeError, "mask_tokens: ids must be an int64 tensor .* got torch.int32"),
    (lambda: mask_tokens(IDS[0], **BERT), ValueError, r"mask_tokens: ids must be \(N, L\).* got shape \(6,\)"),
    (lambda: mask_tokens(IDS[:0], **BERT), ValueError, r"mask_tokens: ids must be .* got shape \(0, 6\)"),
    (lambda: mask_tokens(IDS, mask_id=-1, vocab_size=9), ValueError, r"mask_tokens: mask_id must be in \[0, "),
    (lambda: mask_tokens(IDS, mask_id=1.0, vocab_size=9), TypeError, "mask_tokens: mask_id must be a whole number, got float"),
    (lambda: WIDE(vocab_size=0), ValueError, r"mask_tokens: vocab_size must be in \[1, 4294967296\), got 0"),
    (lambda: WIDE(vocab_size=2**32), ValueError, "mask_tokens: vocab_size must be in"),
    (lambda: MASK(ignore_index=2**63), ValueError, "mask_tokens: ignore_index must be in"),
    (lambda: MASK(probability=1.5), ValueError, r"mask_tokens: probability must be in \[0, 1\], got 1.5"),
    (lambda: MASK(probability=float("nan")), ValueError, "mask_tokens: probability must be"),
    (lambda: MASK(mask_share=-0.1), ValueError, "mask_tokens: mask_share must be at least 0"),
    (lambda: MASK(random_share="a"), TypeError, "mask_tokens: random_share must be a number"),
    (lambda: MASK(random_share=0.3), ValueError, r"mask_tokens: mask_share \+ random_share must be at most 1, got 0.8 \+ 0.3"),
    (lambda: MASK(special=IDS), TypeError, r"mask_tokens: special must be a bool tensor \(N, L\), got torch.int64"),
    (lambda: MASK(special=[True]), TypeError, "mask_tokens: special must be a bool tensor .* got list"),
    (
        lambda: MASK(special=IDS[:1] > 0),
        ValueError,
        r"mask_tokens: special must have shape \(2, 6\) on cpu as ids, got \(1, 6\) on cpu",
    ),
    (lambda: MASK(special=(IDS > 0).to("meta")), ValueError, "mask_tokens: special must have .* on meta"),
    (lambda: MASK(seed=1.0), TypeError, "mask_tokens: seed must be a whole number"),
    (
        lambda: MASK(seed=META),
        ValueError,
        "mask_tokens: seed must be on cpu, got meta",
    ),
    (lambda: MASK(seed=1, generator=torch.Generator()), ValueError, "mask_tokens: only one of generator and seed"),
    (lambda: MASK(generator=1), TypeError, "mask_tokens: generator must be a torch.Generator, got int"),
    (lambda: corrupt_spans(IDS[:, :1], sentinel_start=9, eos_id=1), ValueError, "corrupt_spans: ids must be .* at least 2"),
    (lambda: corrupt_spans(IDS.float(), sentinel_start=9, eos_id=1), TypeError, "corrupt_spans: ids must be an int64 tensor"),
    (lambda: corrupt_spans(IDS, sentinel_start=-1, eos_id=1), ValueError, "corrupt_spans: sentinel_start must be in"),
    (lambda: SPANS(sentinel_start=1, density=0.5, mean_span=1.0), ValueError, "corrupt_spans: sentinel_start must be at least 2"),
    (lambda: SPANS(eos_id=-1), ValueError, "corrupt_spans: eos_id must be in"),
    (lambda: SPANS(eos_id="</s>"), TypeError, "corrupt_spans: eos_id must be a whole number, got str"),
    (lambda: SPANS(density=0), ValueError, r"corrupt_spans: density must be in \(0, 1\), got 0"),
    (lambda: SPANS(density=1.0), ValueError, r"corrupt_spans: density must be in \[0, 1\), got 1"),
    (lambda: SPANS(mean_span=0.5), ValueError, "corrupt_spans: mean_span must be at least 1"),
    (lambda: SPANS(seed="1"), TypeError, "corrupt_spans: seed must be a whole number"),
    (lambda: span_lengths(1), ValueError, r"span_lengths: length must be in \[2, "),
    (lambda: span_mask(2, 0), ValueError, "span_mask: length must be in"),
    (lambda: SPAN(probability=1.1), ValueError, r"span_mask: probability must be in \[0, 1\], got 1.1"),
    (lambda: SPAN(probability=float("nan")), ValueError, "span_mask: probability must be"),
    (lambda: SPAN(span=21), ValueError, "span_mask: span must be at most length 20, got 21"),
    (lambda: SPAN(min_masks=-1), ValueError, "span_mask: min_masks must be in"),
    (lambda: SPAN(lengths=[20, 20]), TypeError, r"span_mask: lengths must be an int64 tensor \(2,\), got list"),
    (lambda: SPAN(lengths=torch.tensor([20])), ValueError, r"span_mask: lengths must have shape \(2,\), got \(1,\)"),
    (lambda: SPAN(lengths=torch.tensor([20, 21])), ValueError, r"span_mask: lengths must be in \[0, 20\], got \[20, 21\]"),
    (lambda: SPAN(lengths=torch.tensor([1, 2]), seed=META), ValueError, "span_mask: seed must be on cpu, got meta"),
    (lambda: SPAN(seed=1, generator=torch.Generator()), ValueError, "span_mask: only one of generator and seed"),
    (
        lambda: SPAN(lengths=torch.tensor([20.0, 20.0])),
        TypeError,
        "span_mask: lengths must be an int64 tensor .* got torch.float32",
    ),
    (lambda: span_lengths(10, density=float("inf")), ValueError, "span_lengths: density must be"),
]


@pytest.mark.parametrize("call, error, words", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
