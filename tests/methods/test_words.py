"""word2vec and ``word_pairs``: the loss against the formula in float64, what is drawn, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import word_pairs
from fastssl.methods import Word2Vec
from fastssl.optim import SparseAdam

V, D = 12, 5
COUNTS = torch.tensor([0, 9, 1, 4, 4, 2, 0, 7, 3, 3, 1, 1])

pytestmark = pytest.mark.usefixtures("one_thread")


def texts(rows: int = 6, length: int = 7) -> torch.Tensor:
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(2))


def made(**how) -> Word2Vec:
    torch.manual_seed(0)
    method = Word2Vec(COUNTS, D, **({"window": 2, "negatives": 3, "subsample": 1.0} | how)).double()
    torch.nn.init.normal_(method.outputs.weight)
    torch.nn.init.normal_(method.inputs.weight)
    return method


def formula(inputs, outputs, given, target, negative) -> torch.Tensor:
    """Equation 4 of the paper, pair by pair and word by word: the losses (B,)."""
    losses = []
    for words, o, noise in zip(given.tolist(), target.tolist(), negative.tolist(), strict=True):
        known = [inputs[i] for i in words if i >= 0]
        h = sum(known) / len(known) if known else inputs[0] * 0
        loss = -torch.sigmoid(h @ outputs[o]).log()
        losses.append(loss + sum(-torch.sigmoid(-(h @ outputs[k])).log() for k in noise if k >= 0))
    return torch.stack(losses)


def pairs_by_hand(ids: torch.Tensor, window: int) -> set[tuple[int, int, int]]:
    """(text, word, word of its window) of texts without those that are no words."""
    found = set()
    for n, row in enumerate(ids.tolist()):
        words = [w for w in row if COUNTS[w] > 0]
        for i, w in enumerate(words):
            found |= {(n, w, words[j]) for j in range(max(0, i - window), min(len(words), i + window + 1)) if j != i}
    return found


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("columns", [1, 3])
def test_losses_and_gradients_are_those_of_the_formula(columns, sparse):
    gen = torch.Generator().manual_seed(columns)
    draw = lambda low, *shape: torch.randint(low, V, shape, generator=gen)  # noqa: E731
    given, target, negative = draw(-1 if columns > 1 else 0, 9, columns), draw(0, 9), draw(-1, 9, 4)
    weight = torch.rand(9, generator=gen, dtype=torch.float64)
    tables = [torch.randn(V, D, generator=gen, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    truth = formula(*tables, given, target, negative)
    found = word_pairs(*tables, given, target, negative, sparse=sparse, reduction="none")
    torch.testing.assert_close(found, truth)
    ours, theirs = (torch.autograd.grad((loss * weight).sum(), tables) for loss in (found, truth))
    for gradient, wanted, ids in zip(ours, theirs, (given, torch.cat([target[:, None], negative], 1)), strict=True):
        torch.testing.assert_close(gradient.to_dense() if sparse else gradient, wanted)
        if sparse:
            assert gradient.is_coalesced() and gradient.indices()[0].tolist() == sorted({*ids.flatten().tolist()} - {-1})


def test_the_number_of_threads_changes_no_bit():
    gen = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(0, 40, shape, generator=gen)  # noqa: E731
    tables = [torch.randn(40, 64, generator=gen, requires_grad=True) for _ in range(2)]
    ids, found = (draw(700), draw(700), draw(700, 5)), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        loss = word_pairs(*tables, *ids)
        found.append([loss.detach(), *(gradient.values() for gradient in torch.autograd.grad(loss, tables))])
    torch.set_num_threads(1)
    assert all(torch.equal(*pair) for pair in zip(*(part[1:] for part in found), strict=True))


def test_a_table_may_be_both_inputs_and_outputs():
    table = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(4), torch.arange(4, 8), torch.arange(4, 12).view(4, 2)
    truth = torch.autograd.grad(formula(table, table, ids[0][:, None], *ids[1:]).mean(), table)[0]
    for sparse in (True, False):
        torch.testing.assert_close(torch.autograd.grad(word_pairs(table, table, *ids, sparse=sparse), table)[0].to_dense(), truth)


@pytest.mark.parametrize("objective", ["negative", "softmax"])
@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_the_loss_is_that_of_the_pairs_that_were_drawn(architecture, objective):
    method, ids = made(architecture=architecture, objective=objective), texts()
    generator = torch.Generator().manual_seed(5)
    loss = method(ids, generator=generator)
    generator.manual_seed(5)
    given, target = method.pairs(ids, generator)
    if objective == "softmax":
        h = torch.stack([method.inputs.weight[row[row >= 0]].mean(0) for row in given])
        truth = F.cross_entropy(h @ method.outputs.weight.T, target)
    else:
        uniform = torch.rand(len(target), 3, dtype=torch.float64, generator=generator)
        share = COUNTS.double() ** 0.75
        noise = (uniform[..., None] >= (share / share.sum()).cumsum(0)).sum(-1)
        assert (COUNTS[noise] > 0).all()
        truth = formula(
            method.inputs.weight, method.outputs.weight, given, target, noise.where(noise != target[:, None], -1)
        ).mean()
    torch.testing.assert_close(loss, truth)


def test_pairs_are_the_words_within_a_window_and_nothing_else():
    ids, method = texts(), made(window=3)
    seen = {1: set(), 3: set()}
    for seed in range(30):
        words, around = method.windows(ids[:1], torch.Generator().manual_seed(seed))
        found = {(0, w, o) for w, row in zip(words.tolist(), around.tolist(), strict=True) for o in row if o >= 0}
        seen[3] |= found
        assert pairs_by_hand(ids[:1], 1) <= found <= pairs_by_hand(ids[:1], 3)
    assert seen[3] == pairs_by_hand(ids[:1], 3)


def test_frequent_words_are_left_out_as_often_as_the_paper_says():
    """t = f / 4 keeps half of the occurrences, and rarer words more."""
    counts = torch.tensor([0, 400, 100])
    method = Word2Vec(counts, 4, subsample=0.2)
    ids = torch.tensor([[1, 2] * 50]).expand(200, -1)
    words, _ = method.windows(ids, torch.Generator().manual_seed(0))
    assert (words == 1).sum() == pytest.approx(5000, rel=0.06) and (words == 2).sum() > 9_990


def test_an_epoch_moves_only_the_words_that_occurred():
    method = made().float()
    optimizer = SparseAdam(method.parameters(), lr=0.1)
    before = method.inputs.weight.detach().clone()
    method(torch.tensor([[1, 3, 4, 0]])).backward()
    optimizer.step()
    assert (method.inputs.weight != before).any(1).nonzero().flatten().tolist() == [1, 3, 4]


def test_texts_without_pairs_give_a_loss_of_0_that_trains():
    method = made()
    optimizer = SparseAdam(method.parameters())
    loss = method(torch.tensor([[0, 3, 6], [0, 0, 0]]))
    loss.backward()
    optimizer.step()
    assert loss.item() == 0 and method.inputs.weight.isfinite().all()


def test_predictions_and_neighbours():
    method = made()
    logits = method.predict(torch.tensor([[1, -1], [3, 4]]))
    h = torch.stack([method.inputs.weight[1], method.inputs.weight[3:5].mean(0)])
    wanted = h @ method.outputs.weight.T + 0.75 * COUNTS.double().log()
    assert logits[:, COUNTS == 0].isneginf().all()
    torch.testing.assert_close(logits[:, COUNTS > 0], wanted[:, COUNTS > 0])
    with torch.no_grad():
        method.inputs.weight[7] = 2 * method.inputs.weight[3]
        method.inputs.weight[6] = method.inputs.weight[3]  # no word
    cosines, ids = method.most_similar(torch.tensor([3]), 2)
    assert ids[0, 0] == 7 and cosines[0, 0].item() == pytest.approx(1) and cosines[0, 1] < 1
    torch.testing.assert_close(method.embed(torch.tensor([[3, 7, 0]]))[0], 1.5 * method.embed(torch.tensor([3]))[0])


def test_the_noise_is_the_same_in_every_dtype_of_the_module():
    """In bfloat16 a distribution over 5000 words would have a few hundred steps."""
    method = Word2Vec(torch.ones(5000), 4)
    assert torch.equal(method.to(torch.bfloat16).cumulated, Word2Vec(torch.ones(5000), 4).cumulated)
    assert method.cumulated.diff().amin() > 0


def tables(*shapes) -> list[torch.Tensor]:
    return [torch.zeros(shape) for shape in shapes]


ONE, TWO = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64)
REFUSALS = [
    (lambda: Word2Vec([1, 2]), TypeError, "counts must be a tensor"),
    (lambda: Word2Vec(torch.tensor([0, 0])), ValueError, "counts must be"),
    (lambda: Word2Vec(torch.tensor([2, -1])), ValueError, "counts must be"),
    (lambda: made(architecture="glove"), ValueError, "architecture must be one of"),
    (lambda: made(objective=1), TypeError, "objective must be one of"),
    (lambda: made(window=0), ValueError, "window"),
    (lambda: made(subsample=0.0), ValueError, "subsample"),
    (lambda: made(power=-1.0), ValueError, "power"),
    (lambda: made()(texts().float()), TypeError, "input_ids must be int64"),
    (lambda: made()(texts()[0]), ValueError, r"input_ids must have shape \(N, L\)"),
    (lambda: made()(texts() + V), ValueError, r"input_ids must be in \[0, 12\)"),
    (lambda: made().embed(ONE + V), ValueError, r"input_ids must be in \[0, 12\)"),
    (lambda: made().embed(texts().float()), TypeError, "input_ids must be int64"),
    (lambda: made().most_similar(ONE, 11), ValueError, "count"),
    (lambda: word_pairs(*tables((4, 3), (4, 2)), ONE, ONE, TWO), ValueError, "as wide as inputs"),
    (
        lambda: word_pairs(*tables((4, 3), (4, 3)), ONE - 1, ONE, TWO),
        ValueError,
        "rows of inputs, from 0 to 3, got -1",
    ),
    (lambda: word_pairs(*tables((4, 3), (4, 3)), ONE, ONE, TWO + 4), ValueError, "or -1 for none, got 4"),
    (lambda: word_pairs(*tables((4, 3), (4, 3)), ONE, ONE[:2], TWO), ValueError, r"target_ids must have shape \(3,\)"),
    (lambda: word_pairs(*tables((4, 3), (4, 3)), ONE, ONE, TWO.float()), TypeError, "negative_ids must be an integer tensor"),
    (lambda: word_pairs(*tables((4, 3), (4, 3)), ONE, ONE, TWO, sparse=1), TypeError, "sparse must be True or False"),
]


@pytest.mark.parametrize("call, kind, said", REFUSALS)
def test_refusals(call, kind, said):
    with pytest.raises(kind, match=said):
        call()
