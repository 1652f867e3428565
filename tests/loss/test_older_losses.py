"""The older losses, compared with float64 formulas on the full matrix; in blocks, compiled, and at their edges."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl.loss.geometry import SoftNearestNeighborLoss, alignment, soft_nearest_neighbor, uniformity
from fastssl.loss.metric import (
    ContrastivePairsLoss,
    LiftedStructuredLoss,
    TripletLoss,
    contrastive,
    contrastive_pairs,
    lifted_structured,
    triplet,
    triplet_batch,
)
from fastssl.loss.parts import distances, row_blocks
from fastssl.loss.sampled import NPairLoss, n_pair, nce, negative_sampling
from fastssl.testing.compare import assert_no_worse
from tests.support.older_losses import BLOCKED, CASES, INDEX, LABELS, D, N, assert_same, make_inputs, randn, run


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 3 * N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case, dtype):
    _, ours, plain = CASES[case]
    inputs = make_inputs(case, dtype)
    (out, grads), (eager, eager_grads), (truth, true_grads) = (
        run(ours, inputs),
        run(plain, inputs),
        run(plain, inputs, torch.float64),
    )
    wide = torch.promote_types(dtype, torch.float32)
    assert out.dtype == wide and out.shape == ()
    assert_no_worse(case, out, eager, truth, wide)
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype and grad.shape == inputs[name].shape
        assert_no_worse(f"{case} d{name}", grad, eager_grads[name], true_grads[name], inputs[name].dtype)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 5 * N)
    inputs = {name: t.requires_grad_() for name, t in make_inputs(case, torch.float64).items()}
    assert torch.autograd.gradcheck(CASES[case][1], tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("case", BLOCKED)
def test_blocks_are_one_block(case, small_blocks, monkeypatch):
    inputs = make_inputs(case)
    blocks = run(CASES[case][1], inputs)
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 1 << 23)
    assert_same(blocks, run(CASES[case][1], inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", BLOCKED)
def test_without_gradient_and_inference_mode(case, small_blocks):
    inputs = make_inputs(case)
    want = CASES[case][1](**{name: t.clone().requires_grad_() for name, t in inputs.items()})
    with torch.inference_mode():
        assert torch.equal(CASES[case][1](**inputs), want)


@pytest.mark.parametrize("case", ["pairs cosine mean", "soft_nearest squared", "nce known index"])
def test_second_derivatives_of_blocks_are_those_of_one_block(case, monkeypatch):
    inputs = {name: t.requires_grad_() for name, t in make_inputs(case, torch.float64).items()}

    def second(elements):
        monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", elements)
        grads = torch.autograd.grad(CASES[case][1](**inputs), list(inputs.values()), create_graph=True)
        return torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in grads), list(inputs.values()))

    for blocks, one in zip(second(5 * N), second(1 << 23), strict=True):
        torch.testing.assert_close(blocks, one)


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize(
    "loss, n, limit",
    [
        (contrastive_pairs, 256, 32 * 256),
        (triplet_batch, 256, 32 * 256),
        (partial(triplet_batch, mining="hard"), 256, 32 * 256),
        (partial(triplet_batch, soft=True), 48, 8 * 48 * 48),
        (lifted_structured, 256, 32 * 256),
        (soft_nearest_neighbor, 256, 32 * 256),
    ],
    ids=("pairs", "all", "hard", "soft", "lifted", "soft_nearest"),
)
def test_no_tensor_is_larger_than_a_block(loss, n, limit, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", limit)
    x = randn(n, 8).requires_grad_()
    with Largest() as largest:
        loss(x, torch.arange(n) % 7).backward()
    assert x.grad.isfinite().all() and 0 < largest.elements <= limit


def test_a_bank_is_gathered_by_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 4 * 16 * 8)
    bank, index = randn(50, 8), torch.arange(64 * 16).reshape(64, 16) % 50
    q = randn(64, 8, seed=1).requires_grad_()
    with Largest() as largest:
        nce(q, bank[:1].expand(64, 8), bank, n=50, noise_index=index).backward()
    assert largest.elements <= 64 * 16  # the index of the logits is there, and the (64, 16, 8) keys are not


# --- edges ---------------------------------------------------------------------------------------------------------------

BATCH = {
    "pairs": contrastive_pairs,
    "all": triplet_batch,
    "all soft": partial(triplet_batch, soft=True),
    "hard": partial(triplet_batch, mining="hard"),
    "hard soft mean": partial(triplet_batch, mining="hard", soft=True, reduction="mean"),
    "lifted": lifted_structured,
    "soft_nearest": soft_nearest_neighbor,
    "soft_nearest euclidean": partial(soft_nearest_neighbor, distance="euclidean"),
    "soft_nearest cosine": partial(soft_nearest_neighbor, distance="cosine"),
}
NOTHING = {  # what -> (labels, the losses that have a term all the same)
    "all classes differ": (torch.arange(N), ("pairs",)),
    "one class": (torch.zeros(N, dtype=torch.int64), ("pairs",)),
    "one row": (torch.zeros(1, dtype=torch.int64), ()),
}


@pytest.mark.parametrize("labels", NOTHING)
@pytest.mark.parametrize("name", BATCH)
def test_no_valid_term_is_zero_with_zero_gradient(name, labels, small_blocks):
    labels, has_terms = NOTHING[labels]
    out, grads = run(lambda x: BATCH[name](x, labels), {"x": randn(len(labels), D)})
    assert out.isfinite() and grads["x"].isfinite().all()
    assert name in has_terms or (out == 0 and (grads["x"] == 0).all())


@pytest.mark.parametrize("name", BATCH)
def test_equal_rows_have_finite_gradients(name):
    x = randn(4, D).repeat(3, 1)  # each row three times, in two classes
    out, grads = run(lambda x: BATCH[name](x, torch.arange(12) % 2), {"x": x})
    assert out.isfinite() and grads["x"].isfinite().all()
    out, grads = run(lambda x: BATCH[name](x, torch.arange(12) % 2), {"x": torch.ones(12, D)})
    assert out.isfinite() and (grads["x"] == 0).all()


@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine"])
def test_equal_and_zero_rows_of_pairs(distance):
    x = {"x": torch.cat([torch.ones(3, D), torch.zeros(3, D)])}
    for call in (
        lambda x: contrastive(x, x.detach(), torch.arange(6) % 2),
        lambda x: triplet(x, x.detach(), x.detach().roll(1, 0), distance=distance),
        lambda x: alignment(x, x.detach(), 0.5),
        lambda x: triplet_batch(x, torch.arange(6) % 2, distance=distance),
    ):
        out, grads = run(call, x)
        assert out.isfinite() and grads["x"].isfinite().all()


def test_a_zero_row_is_at_cosine_distance_one():
    x = distances.distance_rows(torch.tensor([[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0]]), "cosine")
    torch.testing.assert_close(distances.pair_distance(x, x, "cosine")[0], torch.ones(3))
    torch.testing.assert_close(distances.row_distance(x, x.roll(1, 0), "cosine"), torch.tensor([1.0, 1.0, 2.0]))


def test_close_rows_keep_their_digits():
    """Computed as |x|^2 + |y|^2 - 2 <x, y>, a distance of 1e-4 between unit rows would have no right digit in float32."""
    x = F.normalize(randn(40, 16), dim=1)
    x = torch.cat([x, x + 1e-4 * randn(40, 16, seed=1)])
    labels = torch.arange(40).repeat(2)
    loss = partial(contrastive_pairs, labels=labels, neg_margin=0.0, reduction="mean")
    got, want = run(loss, {"features": x}), run(loss, {"features": x}, torch.float64)
    assert abs(got[0] / want[0] - 1) < 1e-6
    torch.testing.assert_close(got[1]["features"].double(), want[1]["features"], rtol=1e-3, atol=1e-5)


def test_a_small_soft_nearest_neighbor_loss_keeps_its_digits():
    x = torch.cat([randn(8, 4, seed=2) * 0.1, randn(8, 4, seed=3) * 0.1 + 1.7])
    loss = partial(soft_nearest_neighbor, labels=torch.arange(16) // 8)
    truth = loss(x.double())
    assert 1e-7 < truth < 1e-3 and abs(loss(x).double() / truth - 1) < 1e-5


def test_far_from_the_origin_uniformity_keeps_its_digits():
    x = randn(30, 6) + 100
    assert abs(uniformity(x, 0.5).double() - uniformity(x.double(), 0.5)) < 1e-5


def test_extreme_logits_of_nce_are_finite():
    q = {"q": 50 * randn(N, D), "k": 50 * randn(N, D, seed=1), "noise": 50 * randn(6, D, seed=2)}
    out, grads = run(lambda q, k, noise: nce(q, k, noise, 0.01, n=10**9, log_z=30.0), q)
    assert out.isfinite() and all(g.isfinite().all() for g in grads.values())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_row_reductions(reduction):
    a, b, noise = randn(N, D), randn(N, D, seed=1), randn(3, D, seed=2)
    for call in (
        partial(contrastive, a, b, LABELS),
        partial(triplet, a, b, a.roll(1, 0)),
        partial(n_pair, a, b, 0.1),
        partial(nce, a, b, noise, 1.0, n=50),
        partial(negative_sampling, a, b, noise),
        partial(alignment, a, b),
    ):
        rows = call(reduction="none")
        assert rows.shape == (N,)
        torch.testing.assert_close(call(reduction=reduction), {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction])
    rows = soft_nearest_neighbor(a, LABELS, reduction="none")
    assert rows.shape == (N,) and rows[12] == 0
    torch.testing.assert_close(soft_nearest_neighbor(a, LABELS), rows.sum() / (N - 1))


def test_modules_are_their_functions():
    x, y = randn(N, D), randn(N, D, seed=1)
    temperature = torch.nn.Parameter(torch.tensor(0.7))
    assert torch.equal(ContrastivePairsLoss(0.1, 2.0)(x, LABELS), contrastive_pairs(x, LABELS, 0.1, 2.0))
    assert torch.equal(TripletLoss(0.2, "hard", soft=True)(x, LABELS), triplet_batch(x, LABELS, 0.2, mining="hard", soft=True))
    assert torch.equal(LiftedStructuredLoss(0.5)(x, LABELS), lifted_structured(x, LABELS, 0.5))
    assert torch.equal(NPairLoss(0.1)(x, y), n_pair(x, y, 0.1))
    loss = SoftNearestNeighborLoss(temperature)
    assert torch.equal(loss(x, LABELS), soft_nearest_neighbor(x, LABELS, 0.7)) and list(loss.parameters()) == [temperature]


def test_a_one_element_temperature_widens_nothing():
    x = randn(N, D)
    for value in (torch.tensor([0.7], dtype=torch.float64), torch.tensor([[0.7]]), torch.tensor(0.7, dtype=torch.float64)):
        for call in (partial(soft_nearest_neighbor, x, LABELS), partial(uniformity, x), partial(nce, x, x, x[:3], n=9)):
            out = call(value)
            assert out.dtype == torch.float32 and out.shape == ()
            torch.testing.assert_close(out, call(0.7))


# --- the machinery around ------------------------------------------------------------------------------------------------

COMPILED = {  # case: more than one block
    "lifted": False,
    "n_pair": False,
    "uniformity": False,
    "pairs euclidean nonzero": False,
    "soft_nearest cosine": True,
    "triplet_batch all euclidean hinge": True,
    "triplet_batch hard cosine soft": False,
    "nce uniform index": True,
    "negative_sampling shared": False,
}


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_whole(case, monkeypatch):
    if COMPILED[case]:
        monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 8 * (4 * D if "nce" in case else N))
    torch._dynamo.reset()
    inputs = make_inputs(case)
    compiled = torch.compile(CASES[case][1], fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, inputs), run(CASES[case][1], inputs))


@pytest.mark.parametrize("case", COMPILED)
def test_under_autocast_the_given_dtype_is_used(case, small_blocks):
    inputs = make_inputs(case)
    plain = run(CASES[case][1], inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(run(CASES[case][1], inputs), plain, rtol=0, atol=0)


def test_an_index_without_data_beside_keys_with_data_is_refused():
    index = torch._subclasses.FakeTensorMode().from_tensor(INDEX)
    with pytest.raises(ValueError, match="nce: query and noise_index must both be fake tensors or both have data"):
        nce(randn(N, D), randn(N, D), randn(9, D), n=50, noise_index=index)


@pytest.mark.parametrize("far", [1e6, 1e15])
@pytest.mark.parametrize("case", [name for name in BLOCKED if "x" in CASES[name][0] and "cosine" not in name])
def test_a_row_far_away_leaves_the_others_alone(case, far, small_blocks):
    """Row 12 is alone in its class, so it adds nothing, and from a distance of 100 on it pulls at no other row. It carries the
    mean of the rows away, so the mean would be a bad origin."""
    _, ours, plain = CASES[case]
    near, away = make_inputs(case), make_inputs(case)
    near["x"][12] *= 100
    away["x"][12] *= far
    others = torch.arange(N) != 12
    found, eager, truth = run(ours, away), run(plain, near), run(plain, near, torch.float64)
    assert_no_worse(case, found[0], eager[0], truth[0], torch.float32)
    assert_no_worse(case, *(grads["x"][others] for _, grads in (found, eager, truth)), torch.float32)


@pytest.mark.parametrize("apart", [1e2, 1e4])
@pytest.mark.parametrize(
    "case", ["pairs euclidean sum", "pairs squared mean", "triplet_batch all euclidean hinge", "soft_nearest euclidean"]
)
def test_groups_far_apart_keep_the_digits_of_what_is_near(case, apart, small_blocks):
    """Here no origin is near to all rows."""
    _, ours, plain = CASES[case]
    inputs = make_inputs(case)
    inputs["x"][LABELS == 1] += apart
    found, eager, truth = run(ours, inputs), run(plain, inputs), run(plain, inputs, torch.float64)
    assert_no_worse(case, found[0], eager[0], truth[0], torch.float32)
    assert_no_worse(case, found[1]["x"], eager[1]["x"], truth[1]["x"], torch.float32)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_a_row_far_away_leaves_uniformity_alone(far):
    x = randn(40, 8)
    x[3] *= far
    pairs = lambda x: torch.pdist(x).square().mul(-2.0).exp().mean().log()  # noqa: E731
    (got, grads), (want, true) = run(uniformity, {"x": x}), run(pairs, {"x": x}, torch.float64)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    assert (grads["x"].double() - true["x"]).norm() <= 1e-5 * true["x"].norm()
