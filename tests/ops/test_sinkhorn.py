"""Sinkhorn's potentials against the forms of SwAV, DINOv2 and DINOv3, and lightly's function; extreme logits; layouts of rows."""

import sys

import pytest
import torch

from benchmarks.peers import ready_torchvision
from fastssl.functional import sinkhorn
from fastssl.ops import sinkhorn as contract
from fastssl.ops._register import _C
from fastssl.reference import sinkhorn as reference
from fastssl.testing.compare import relative_error
from tests.ops.common import at_thread_counts


def lightlys(logits, iterations, temperature):
    ready_torchvision()
    return pytest.importorskip("lightly.loss.swav_loss", exc_type=ImportError).sinkhorn(logits, iterations, temperature)


def swav(logits, temperature, iterations):
    """SwAV: divided by the sum of all; prototypes to 1 / K, samples to 1 / B; times B."""
    q = (logits / temperature).exp().t()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def dinov2(logits, temperature, iterations, samples):
    """DINOv2 and DINOv3's patches: B is a number of samples that processes have added up, whatever it is."""
    q = (logits.float() if logits.dtype == torch.float16 else logits).div(temperature).exp().t()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).t()


def in_logs(logits, temperature, iterations):
    """The same in logarithms and float64, at any size."""
    x, u, v = logits.double() / temperature, 0.0, 0.0
    for _ in range(iterations):
        u = -(x + v).logsumexp(0)
        v = -(x + u).logsumexp(1, keepdim=True)
    return (x + u + v).exp()


def plan(logits, potential, temperature):
    return ((logits.double() + potential.double()) / temperature).softmax(-1)


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_each_librarys_convention_is_the_softmax_of_logits_and_potential(iterations):
    logits = torch.randn(60, 24, dtype=torch.float64) * 0.3
    ours = plan(logits, sinkhorn(logits, 0.05, iterations), 0.05)
    for theirs in (
        swav(logits, 0.05, iterations),
        dinov2(logits, 0.05, iterations, 60),
        dinov2(logits, 0.05, iterations, 3 * 60),  # Franca's B, added up over processes once for each head
        lightlys(logits, iterations, 0.05),
        in_logs(logits, 0.05, iterations),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_maximum_of_a_row_may_not_be_subtracted_and_that_of_a_prototype_may():
    """dinov2's pull request 583 subtracts each sample's largest logit, which changes a finite number of iterations."""
    logits = torch.randn(128, 256, dtype=torch.float64) * 0.3
    right = swav(logits, 0.04, 3)
    by_prototype = swav(logits - logits.amax(0), 0.04, 3)
    by_row = swav(logits - logits.amax(1, keepdim=True), 0.04, 3)
    assert relative_error(by_prototype, right) < 1e-12
    moved = (by_row - right).abs().sum(1).mean()  # of a mass of 1 in each row
    assert 0.1 < moved < 1.0, moved


EVEN = lambda *shape: (torch.rand(shape) * 2 - 1) * 100  # noqa: E731
EXTREMES = {
    "logits up to 100": EVEN(64, 3000),
    "few rows": EVEN(16, 500),
    "one column": EVEN(9, 1),
    "one row": EVEN(1, 700),
    "constants": torch.full((8, 40), 100.0),
    "a prototype that nobody wants": torch.cat([EVEN(40, 30), torch.full((40, 1), -100.0)], 1),
    "normal logits of 100": torch.randn(200, 300) * 100,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_logits(name, dtype):
    logits = EXTREMES[name].to(dtype)
    assert not swav(logits.float(), 0.04, 3).isfinite().all()
    potential = sinkhorn(logits, 0.04, 3)
    found = plan(logits, potential, 0.04)
    assert (found - in_logs(logits, 0.04, 3)).abs().max() < max(1e-5, 2.0**-25 * potential.abs().max() / 0.04)


def test_a_prototype_or_a_row_of_minus_infinity():
    logits = torch.randn(20, 6)
    full = sinkhorn(logits, 0.1)
    more = torch.cat([torch.cat([logits, torch.full((20, 1), -torch.inf)], 1), torch.full((1, 7), -torch.inf)])
    found = sinkhorn(more, 0.1)
    torch.testing.assert_close(found, torch.cat([full, torch.zeros(1)]))
    logits[3, 2] = torch.nan
    assert sinkhorn(logits, 0.1).isnan().any()


@pytest.mark.parametrize("separate", [None, 0, 1, 2])
def test_each_index_of_a_dimension_by_itself(separate):
    logits = torch.randn(3, 4, 5, 8)
    found = sinkhorn(logits, 0.1, separate=separate, heads=[3, 5])
    for at in range(1 if separate is None else logits.shape[separate]):
        part = logits if separate is None else logits.select(separate, at)
        of_part = found if separate is None else found.expand_as(logits).select(separate, at)
        for head in (slice(0, 3), slice(3, 8)):
            alone = sinkhorn(part[..., head], 0.1)
            torch.testing.assert_close(of_part[..., head].expand_as(part[..., head]), alone.expand_as(part[..., head]))


#: (rows, columns, inner, groups, heads)
LAYOUTS = [(300, 40, 1, 1, [40]), (16, 5000, 1, 1, [4999, 1]), (24, 33, 2, 3, [33]), (40, 7, 1, 20, [3, 4]), (5000, 3, 1, 1, [3])]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_passes_are_those_of_the_reference(layout, isa):
    rows, columns, inner, groups, heads = layout
    logits, bias, scale = torch.randn(rows, columns), torch.randn(groups, columns) * 0.1, torch.tensor([0.07])
    top, total = contract.sinkhorn_start(logits, scale, inner, groups)
    right_top, right = reference.sinkhorn_start(logits.double(), scale.double(), inner, groups)
    assert torch.equal(top.double(), right_top) and relative_error(total, right) < 2e-6
    step = contract.sinkhorn_step(logits, bias, scale, heads, inner)
    truth = reference.sinkhorn_step(logits.double(), bias.double(), scale.double(), heads, inner)
    assert relative_error(step, truth) < 2e-6
    exact = contract.sinkhorn_step(logits.double(), bias.double(), scale.double(), heads, inner)
    assert relative_error(exact, truth) < 1e-13


@pytest.mark.parametrize("shape", [(300, 40), (16, 5000), (700, 2)], ids=str)
def test_every_number_of_threads_gives_the_same_bits(shape):
    logits = torch.randn(shape)
    first, *others = at_thread_counts(lambda: sinkhorn(logits, 0.05))
    assert all(torch.equal(first, other) for other in others)


def test_layouts_and_whole_graphs():
    logits = torch.randn(12, 9)
    right = sinkhorn(logits, 0.1)
    assert torch.equal(sinkhorn(logits.t().contiguous().t(), 0.1), right)
    assert torch.equal(sinkhorn(torch.cat([logits, logits], 1)[:, :9], torch.tensor(0.1)), right)
    compiled = torch.compile(lambda x: sinkhorn(x, 0.1), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), right)


def test_offsets_beyond_32_bits():
    far = torch.empty(2 * 2**30 + 64, dtype=torch.bfloat16).as_strided((3, 64), (2**30, 1))
    near = torch.randn(3, 64).bfloat16()
    far.copy_(near)
    assert torch.equal(sinkhorn(far, 0.1), sinkhorn(near, 0.1))


def test_opcheck():
    logits, scale = torch.randn(6, 5), torch.tensor([0.1])
    torch.library.opcheck(contract.sinkhorn_start, (logits, scale, 1, 2))
    torch.library.opcheck(contract._step, (logits, torch.randn(2, 5), scale, [2, 3], 1))


@pytest.mark.skipif(not sys.platform.startswith("linux") or _C is None, reason="needs the C++ kernels and Linux's /proc")
def test_nothing_of_the_size_of_the_logits_is_stored_beside_their_gradient():
    from benchmarks.core import memory
    from benchmarks.core.registry import WORKLOADS

    peak, reason = memory.measure(WORKLOADS["soft_targets_sinkhorn"], (128, 65536), torch.float32, "fastssl")
    assert reason == "" and peak < 1.25 * 128 * 65536 * 4 / 1e6


X = torch.zeros(4, 6)
REFUSED = [
    ((X[0],), {}, ValueError, "logits must have shape"),
    ((X[:0],), {}, ValueError, "logits must have at least one row"),
    ((X.int(),), {}, TypeError, "logits must be float32"),
    ((X.clone().requires_grad_(),), {}, NotImplementedError, "logits must not require a gradient"),
    ((X, 0.0), {}, ValueError, "temperature must be finite and not 0"),
    ((X, -1.0), {}, ValueError, "temperature must be above 0"),
    ((X, 0.1, 0), {}, ValueError, r"iterations must be in \[1"),
    ((X,), {"separate": 1}, ValueError, "separate must be in"),
    ((X,), {"separate": -1}, ValueError, "separate must be a dimension of samples"),
    ((X,), {"heads": [6, 0]}, ValueError, "heads must be sizes of at least 1"),
    ((X,), {"group": "world"}, TypeError, "group must be a process group"),
]


@pytest.mark.parametrize("given, how, kind, words", REFUSED, ids=[words[:40] for *_, words in REFUSED])
def test_refusals(given, how, kind, words):
    with pytest.raises(kind, match=f"^sinkhorn: {words}"):
        sinkhorn(*given, **how)
