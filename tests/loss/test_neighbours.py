"""KoLeo against lightly's, its neighbours against a search by hand, and what it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import ready_torchvision
from fastssl.functional import koleo
from fastssl.loss import KoLeoLoss
from fastssl.ops._register import OWNERS
from fastssl.ops.nearest_in_groups import nearest_in_groups
from fastssl.reference import nearest_in_groups as search
from fastssl.reference.koleo import koleo_bwd
from fastssl.testing.latents import koleo as eager
from fastssl.testing.latents import rows

of_cpp = pytest.mark.skipif(OWNERS["koleo_bwd"]["CPU"] != "C++", reason="what the C++ kernels promise")


def value_and_gradient(call, z):
    z = z.clone().requires_grad_()
    loss = call(z)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.fixture(scope="module")
def lightly():
    ready_torchvision()
    return pytest.importorskip("lightly.loss")


@pytest.mark.parametrize("how", [{}, {"p": 1, "eps": 1e-4}], ids=str)
def test_lightlys_loss(lightly, how):
    z = rows((64, 32))["z"]
    torch.testing.assert_close(
        value_and_gradient(KoLeoLoss(**how), z), value_and_gradient(lightly.KoLeoLoss(**how), z), rtol=1e-6, atol=1e-9
    )


def test_float32_under_autocast_where_lightly_finds_other_neighbours(lightly):
    """lightly's matrix of cosines is bfloat16 there: of 256 rows that lie close together it finds other neighbours."""
    z = torch.ones(256, 32) + 0.1 * rows((256, 32))["z"]
    truth = eager(z.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = koleo(z), lightly.KoLeoLoss()(z)
    assert (ours - truth).abs() < 1e-5 and (theirs - truth).abs() > 0.05


def test_opposite_rows_are_each_others_neighbours():
    """Where the diagonal is set to -1, as in DINOv2 and DINOv3, the first of two opposite rows finds itself, at distance 0."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo(z).item() == pytest.approx(-torch.tensor(2.0).log().item())
    cosines = (z @ z.T).fill_diagonal_(-1.0)
    assert cosines.argmax(1).tolist() == [0, 0]  # the first row finds itself


@pytest.mark.parametrize("p", [2.0, 1.5])
@pytest.mark.parametrize("topk, size", [(1, None), (3, None), (1, 6), (2, 3)])
def test_several_neighbours_and_groups(topk, size, p):
    z = rows((12, 5), torch.float64)["z"]
    how = {"topk": topk, "group_size": size, "p": p}
    torch.testing.assert_close(value_and_gradient(lambda t: koleo(t, **how), z), value_and_gradient(lambda t: eager(t, **how), z))


def by_hand(x, topk, size):
    """Of all similarities."""
    similarity = x @ x.T
    group = torch.arange(len(x)) // size
    similarity[group[:, None] != group] = -torch.inf
    return similarity.fill_diagonal_(-torch.inf).topk(topk, 1).indices


@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("topk, size", [(1, 12), (3, 12), (1, 6), (2, 3)])
def test_the_search_in_plain_pytorch_by_blocks(topk, size, elements, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_ELEMENTS", elements)
    x = rows((12, 5), torch.float64)["z"]
    assert torch.equal(search.nearest_in_groups(x, topk, size), by_hand(x, topk, size))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count, size", [(7, 7), (65, 65), (260, 130), (1200, 1200), (96, 3)])
@pytest.mark.parametrize("topk", [1, 2])
def test_the_search_by_tiles(count, size, topk, threads):
    """One tile, a ragged one, tiles of several groups, and rows wider than a tile."""
    x = torch.nn.functional.normalize(rows((count, 40), torch.float64)["z"], dim=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, narrow = nearest_in_groups(x, topk, size), nearest_in_groups(x.float(), topk, size)
    finally:
        torch.set_num_threads(before)
    wanted = by_hand(x, topk, size)
    assert torch.equal(found, wanted)
    similarity = x @ x.T
    assert (narrow // size == wanted // size).all() and (narrow != torch.arange(count)[:, None]).all()
    torch.testing.assert_close(similarity.gather(1, narrow), similarity.gather(1, wanted), rtol=0, atol=1e-6)


@of_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equally_similar_rows_the_first_is_found(dtype):
    """Entries of 1 / 2 make all products exact: four different rows, each of them many times."""
    x = (0.5 * torch.tensor([[1, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1], [-1, -1, 1, 1]], dtype=dtype)).repeat(600, 1)
    found = nearest_in_groups(x, 2, len(x))
    first = torch.arange(4).repeat(600)
    assert torch.equal(found[8:], torch.stack([first, first + 4], 1)[8:])
    assert found[:4].tolist() == [[4, 8], [5, 9], [6, 10], [7, 11]] and found[4:8, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows_in_its_group(value):
    z = rows((8, 5))["z"]
    z[5, 2] = value
    for topk in (1, 2):
        loss, gradient = value_and_gradient(lambda t: koleo(t, topk=topk, group_size=4), z)  # noqa: B023
        assert loss.isnan() and gradient[4:].isnan().all() and gradient[:4].isfinite().all()
        assert value_and_gradient(lambda t: eager(t, topk=topk, group_size=4), z)[1][4:].isnan().all()  # noqa: B023


@of_cpp
def test_the_gradient_has_the_same_bits_with_any_number_of_threads():
    z = rows((300, 70))["z"]
    x, norm = torch.ops.fastssl.koleo_rows(z, 1e-8)
    place = torch.arange(300)
    shared = torch.stack([place % 7 * 9, place % 5 * 11 + 100], 1)  # rows that are neighbours of many
    ids = torch.where(shared == place[:, None], shared + 1, shared)
    terms, distance = torch.ops.fastssl.koleo_fwd(x, ids, 1e-8)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.ops.fastssl.koleo_bwd(terms, x, ids, distance, norm, 1e-8, 300, torch.float32))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    plain = koleo_bwd(terms.double(), x.double(), ids, distance.double(), norm.double(), 1e-8, 300, torch.float64)
    torch.testing.assert_close(found[0].double(), plain, rtol=1e-4, atol=1e-5)


def test_flops_are_counted():
    with FlopCounterMode(display=False) as counter:
        koleo(rows((12, 5))["z"], group_size=4)
    assert counter.get_total_flops() == 12 * 4 * 5


def test_equal_rows_have_a_finite_loss_and_gradient():
    z = torch.ones(4, 3)
    loss, gradient = value_and_gradient(koleo, z)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("eps", [1e-6, 1e-8, 1e-12, 1e-20])
def test_what_two_equal_rows_give_each_other_cancels_and_leaves_all_digits_of_the_rest(eps):
    """The terms of the pair have gradients of 1 / (D eps), which cancel, beside those of size 1 of the rows next to the pair."""
    z = rows((40, 16))["z"]
    z[5] = z[6]
    z[7] = z[6] + 0.5 * z[7]  # whose neighbour is one of the pair

    def rest(wide):
        x = torch.nn.functional.normalize(wide, dim=1)
        near = by_hand(x.detach(), 1, len(x))[:, 0]
        assert near[5] == 6 and near[6] == 5 and near[7] in (5, 6)
        others = [i for i in range(len(x)) if i not in (5, 6)]
        return -torch.linalg.vector_norm(x[others] - x[near[others]], dim=1).log().sum() / len(x)

    def of_the_pair_together(gradient):
        """Which of the two is the neighbour of row 7 is a matter of rounding."""
        return torch.cat([gradient[:5], gradient[5:7].sum(0, keepdim=True), gradient[7:]]).double()

    wanted = of_the_pair_together(value_and_gradient(rest, z.double())[1])
    found = of_the_pair_together(value_and_gradient(lambda t: koleo(t, eps=eps), z)[1])
    assert wanted[5].norm() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "error, said, call",
    [
        (ValueError, "z must have more rows than topk = 1, got 1", lambda: koleo(torch.ones(1, 3))),
        (ValueError, "z must have more rows than topk = 4, got 4", lambda: koleo(torch.ones(4, 3), topk=4)),
        (ValueError, "group_size must divide the number of rows 4, got 3", lambda: koleo(torch.ones(4, 3), group_size=3)),
        (ValueError, "group_size must be above topk = 2, got 2", lambda: koleo(torch.ones(4, 3), topk=2, group_size=2)),
        (ValueError, "z must be 2-D", lambda: koleo(torch.ones(4))),
        (ValueError, "at least one row", lambda: koleo(torch.ones(0, 3))),
        (TypeError, "z must be float32", lambda: koleo(torch.ones(4, 3).long())),
        (ValueError, "eps must be at least 0", lambda: koleo(torch.ones(4, 3), eps=-1.0)),
        (ValueError, "p must be at least 1", lambda: koleo(torch.ones(4, 3), p=0.5)),
        (TypeError, "gather_distributed must be True or False", lambda: KoLeoLoss(gather_distributed=1)),
        (ValueError, "group_size must be in", lambda: KoLeoLoss(group_size=1)),
    ],
)
def test_refusals(error, said, call):
    with pytest.raises(error, match=said):
        call()
