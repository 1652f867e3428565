"""SIGReg, LeJEPA and VISReg with ``group=``: several processes give one process's loss and gradients on the joined batch."""

import warnings

import pytest
import torch
from torch import distributed

import fastssl
from fastssl.distributed import Ranks
from fastssl.functional import lejepa_loss, sigreg, visreg
from fastssl.loss import SIGRegLoss
from fastssl.testing import sketched
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {1: (7,), 2: (9, 2), 3: (4, 1, 6)}
CASES = {
    "sigreg": lambda z, **how: sigreg(z, slices=50, **how),
    "lejepa_loss": lambda z, **how: lejepa_loss(z, global_views=2, slices=50, lambda_param=0.3, **how),
    "visreg": lambda z, **how: visreg(z, global_views=2, slices=50, **how),
    "visreg, two directions": lambda z, **how: visreg(z, global_views=2, slices=2, **how),
}


def value_and_gradient(call, z, weight, **how):
    weight = weight.detach().clone().requires_grad_()
    loss = call(z @ weight, **how)
    return [loss.detach(), *torch.autograd.grad(loss, weight)]


def check_all(rank: int, world: int) -> None:
    warnings.simplefilter("error", fastssl.LocalRowsWarning)  # with a group no loss is local
    alone, _ = distributed.new_subgroups(1)
    two = distributed.new_group([0, 1])
    for size, group in ((1, alone), (2, two), (world, distributed.group.WORLD)):
        if rank >= size:
            continue
        counts = COUNTS[size]
        whole = torch.randn(3, sum(counts), 8, generator=torch.Generator().manual_seed(1))
        own = whole[:, sum(counts[:rank]) :][:, : counts[rank]]
        check_cases(size, own, whole, group, alone)
        check_seeds(rank, size, own, group)
        if size == 2:
            check_lost_sums(own, whole, group, alone)
            check_compiled(own, group)


def check_cases(world: int, own: torch.Tensor, whole: torch.Tensor, group, alone) -> None:
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(2)) / 8**0.5
    for name, call in CASES.items():
        found = value_and_gradient(call, own, weight, seed=11, group=group)
        for value in found:
            distributed.all_reduce(value, group=group)
            value /= world
        wanted = value_and_gradient(call, whole.double(), weight.double(), seed=11, group=alone)
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine.double() - theirs).norm() <= 1e-6 * theirs.norm(), (name, world, mine, theirs)


def check_seeds(rank: int, world: int, own: torch.Tensor, group) -> None:
    """Without a seed all processes use the first one's, and the value is the same in all of them."""
    torch.manual_seed(100 + rank)
    value = sigreg(own, slices=8, group=Ranks(group))
    everyone = [torch.empty_like(value) for _ in range(world)]
    distributed.all_gather(everyone, value, group=group)
    assert all(torch.equal(value, other) for other in everyone)
    if world == 3:
        assert SIGRegLoss(num_vectors=8, gather_distributed=True)(own).isfinite()


def check_lost_sums(own: torch.Tensor, whole: torch.Tensor, group, alone) -> None:
    """stable-pretraining 0.1.8 throws away what its all-reduce returns: means over the own samples, times own samples times
    processes, are another number."""
    A = sketched.directions(own, 50)
    right = sigreg(whole, directions=A, group=alone)
    torch.testing.assert_close(sigreg(own, directions=A, group=group), right)
    lost = 2 * sketched.sigreg(own, A)
    assert (lost / right - 1).abs() > 0.1, (lost, right)


def check_compiled(own: torch.Tensor, group) -> None:
    call = lambda z: sigreg(z, slices=8, seed=3, group=group)  # noqa: E731
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    eye = torch.eye(8)
    torch.testing.assert_close(value_and_gradient(compiled, own, eye), value_and_gradient(call, own, eye))


def test_the_loss_of_all_is_that_of_one_process(tmp_path):
    """In groups of one, two and three processes."""
    run_processes(check_all, 3, tmp_path)
