"""``koleo``, ``mmcr`` and ``tico`` over several processes: the loss and gradients of one process with the joined batch. Batches are
uneven, and one process may have a single row."""

import pytest
import torch
from torch import distributed

from fastssl.distributed import Ranks, travel
from fastssl.functional import koleo, mmcr, tico
from fastssl.loss import KoLeoLoss
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, DIM = 7, 5
COUNTS = {1: (12,), 2: (11, 1), 3: (4, 1, 7)}
FORMS = ({}, {"topk": 3}, {"topk": 2, "group_size": 4}, {"group_size": 6, "p": 1.5, "eps": 1e-3})

OTHERS = {
    "mmcr": lambda a, b, group: mmcr(a[:, None], b[:, None], 0.5, group=group),
    "tico": lambda a, b, group: tico(a, b, torch.ones(DIM, DIM), beta=0.7, group=group)[0],
}


def _rows(count: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def _weight(dtype=torch.float32) -> torch.Tensor:
    weight = torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return weight.to(dtype).requires_grad_()


def _mean(value: torch.Tensor, world: int) -> torch.Tensor:
    distributed.all_reduce(value)
    return value / world


def _close(found: torch.Tensor, wanted: torch.Tensor, what) -> None:
    assert (found.double() - wanted).norm() <= 1e-6 * wanted.norm(), (what, found, wanted)


def _check(rank: int, world: int) -> None:
    if world == 3:  # parts of one row
        travel.PART_BYTES = travel.LEAST_BYTES = 1
    counts = COUNTS[world]
    first = sum(counts[:rank])
    everyone, weight = _rows(12, torch.float64), _weight(torch.float64)
    for form in FORMS:
        wanted = koleo(everyone @ weight, **form)
        (gradient,) = torch.autograd.grad(wanted, weight)
        for transport in ("gather", "ring"):
            mine = _weight()
            loss = koleo(_rows(12)[first : first + counts[rank]] @ mine, group=Ranks(transport=transport), **form)
            (own,) = torch.autograd.grad(loss, mine)
            _close(_mean(loss.detach(), world), wanted, (form, transport, "loss"))
            _close(_mean(own, world), gradient, (form, transport, "gradient"))
    views = everyone @ weight, everyone.flip(1) @ weight
    for name, call in OTHERS.items():
        wanted = call(*views, None)
        (gradient,) = torch.autograd.grad(wanted, weight, retain_graph=True)
        mine, rows = _weight(), _rows(12)[first : first + counts[rank]]
        loss = call(rows @ mine, rows.flip(1) @ mine, Ranks())
        (own,) = torch.autograd.grad(loss, mine)
        _close(_mean(loss.detach(), world), wanted, (name, "loss"))
        _close(_mean(own, world), gradient, (name, "gradient"))
    if world > 1:
        _check_refusals(rank, counts)
        _check_compiled(counts[rank])


def _check_refusals(rank: int, counts) -> None:
    with pytest.raises(ValueError, match="group_size must divide the number of rows of all processes 12, got 5"):
        koleo(torch.ones(counts[rank], 3), group_size=5, group=Ranks())
    with pytest.raises(ValueError, match="more rows in all processes than topk = 12, got 12"):
        koleo(torch.ones(counts[rank], 3), topk=12, group=Ranks())


def _check_compiled(count: int) -> None:
    z = _rows(12)[:count].requires_grad_()
    criterion = KoLeoLoss(topk=2, gather_distributed=True)
    results = []
    for call in (criterion, torch.compile(criterion, backend="aot_eager", fullgraph=True)):
        loss = call(z)
        results.append([loss.detach(), torch.autograd.grad(loss, z)[0]])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_neighbours_among_the_rows_of_all_processes(world, tmp_path):
    run_processes(_check, world, tmp_path)
