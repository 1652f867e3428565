"""Barlow Twins and VICReg with ``group=``: several processes give one process's loss and gradients on the joined batch; so do not
lightly's Barlow Twins with a gather, nor a plain all-reduce of the correlation."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn

import fastssl
from benchmarks.peers import ready_torchvision
from fastssl.compat import barlow, solo, vicreg
from fastssl.functional import barlow_twins
from fastssl.functional import vicreg as vicreg_of
from fastssl.loss import BarlowTwinsLoss, VICRegLoss
from fastssl.testing import redundancy as plain
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 8
COUNTS = {1: (7,), 2: (9, 2), 3: (4, 1, 6)}
CASES = {
    f"{name}, {form}": partial(call, form=form)
    for name, call in {
        "barlow": partial(barlow_twins, lambda_param=0.1),
        "vicreg": vicreg_of,
        "vicreg, positions": lambda a, b, **how: vicreg_of(a.unflatten(1, (2, 3)), b.unflatten(1, (2, 3)), **how),
    }.items()
    for form in ("gram", "covariance", "auto")
}


def views(counts) -> list[list[torch.Tensor]]:
    """Of each process the two views of its rows (N, WIDTH)."""
    generator = torch.Generator().manual_seed(1)
    base = 0.5 + torch.randn(sum(counts), WIDTH, generator=generator)
    sides = [base + 0.3 * torch.randn(base.shape, generator=generator) for _ in range(2)]
    return [list(pair) for pair in zip(*(side.split(list(counts)) for side in sides), strict=True)]


def encoder(dtype=torch.float32) -> torch.Tensor:
    weight = torch.randn(WIDTH, 6, generator=torch.Generator().manual_seed(2)) / WIDTH**0.5
    return weight.to(dtype).requires_grad_()


def value_and_gradient(call, sides, **how) -> list[torch.Tensor]:
    weight = encoder(sides[0].dtype)
    loss = call(*(side @ weight for side in sides), **how)
    return [loss.detach(), *torch.autograd.grad(loss, weight)]


def averaged(values: list[torch.Tensor], group=None) -> list[torch.Tensor]:
    """As DistributedDataParallel does it."""
    for value in values:
        distributed.all_reduce(value, group=group)
        value /= distributed.get_world_size(group)
    return values


def error(found, wanted) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def check_cases(rank: int, group, alone) -> None:
    world = distributed.get_world_size(group)
    parts = views(COUNTS[world])
    whole = [torch.cat(side).double() for side in zip(*parts, strict=True)]
    for name, call in CASES.items():
        found = averaged(value_and_gradient(call, parts[rank], group=group), group)
        wanted = value_and_gradient(call, whole, group=alone)
        assert max(map(error, found, wanted)) <= 1e-6, (name, world, found, wanted)


def check_compiled(rank: int, group) -> None:
    sides = views(COUNTS[2])[rank]
    for call in (CASES["barlow, gram"], CASES["vicreg, auto"]):
        step = partial(value_and_gradient, sides=sides, group=group)
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(step(compiled), step(call))


def plain_reduced(z0, z1, sync: bool):
    """The Barlow Twins repository and solo-learn: a plain all-reduce adds the correlations, whose gradient stays in its process."""
    x, y = (synced(z) if sync else F.batch_norm(z, None, None, training=True) for z in (z0, z1))
    c = x.T @ y / (len(z0) * distributed.get_world_size())
    data = c.detach().clone()
    distributed.all_reduce(data)
    c = c + (data - c.detach())
    return (c.diagonal() - 1).square().sum() + 5e-3 * plain._off_diagonal(c).square().sum()


def synced(z):
    """The columns standardised over all processes, as SyncBatchNorm does it on GPUs."""
    world = distributed.get_world_size()
    mean = distributed.nn.all_reduce(z.mean(0)) / world
    var = distributed.nn.all_reduce((z - mean).square().mean(0)) / world
    return (z - mean) / (var + 1e-5).sqrt()


def check_peers(rank: int, alone) -> None:
    """With even batches, which is what the peers are made for."""
    ready_torchvision()
    lightly = pytest.importorskip("lightly.loss")
    world = distributed.get_world_size()
    parts = [[t.double() for t in sides] for sides in views((5,) * world)]
    whole = [torch.cat(side) for side in zip(*parts, strict=True)]
    own = parts[rank]
    right = value_and_gradient(barlow_twins, whole, group=alone)
    ours = averaged(value_and_gradient(BarlowTwinsLoss(gather_distributed=True), own))
    assert max(map(error, ours, right)) < 1e-12
    theirs = averaged(value_and_gradient(lightly.BarlowTwinsLoss(gather_distributed=True), own))
    assert error(theirs[0], right[0]) > 0.02 and error(theirs[1], right[1]) > 0.02, "lightly standardises by local statistics"

    both = [averaged(value_and_gradient(m(gather_distributed=True), own)) for m in (VICRegLoss, lightly.VICRegLoss)]
    wanted = value_and_gradient(vicreg_of, whole, group=alone)
    assert max(error(t, w) for found in both for t, w in zip(found, wanted, strict=True)) < 1e-12

    repository = averaged(value_and_gradient(partial(plain_reduced, sync=True), own))
    assert error(repository[0], right[0]) < 1e-12 and error(world * repository[1], right[1]) < 1e-12, "a gradient of 1 / W"
    local = averaged(value_and_gradient(partial(plain_reduced, sync=False), own))
    found = averaged(value_and_gradient(partial(solo.barlow_loss_func, scale_loss=1.0), own))
    assert max(map(error, found, local)) < 1e-12

    module = barlow.BarlowTwinsLoss(6, 5e-3, batch_size=len(whole[0]))
    module.bn = nn.SyncBatchNorm(6, affine=False)
    found = averaged(value_and_gradient(module, own))
    assert error(found[0], right[0]) < 1e-12 and error(world * found[1], right[1]) < 1e-12
    z = (whole[1] @ encoder(torch.float64)).detach()
    first = (whole[0] @ encoder(torch.float64)).detach()
    torch.testing.assert_close(module.bn.running_var.double(), 0.81 + 0.09 * first.var(0) + 0.1 * z.var(0), rtol=1e-6, atol=0)
    found = averaged(value_and_gradient(partial(vicreg.vicreg_loss, batch_size=len(whole[0])), own))
    assert max(map(error, found, wanted)) < 1e-12
    gathered = vicreg.batch_all_gather(own[0].requires_grad_())
    (gathered * (1.0 + rank)).sum().backward()
    assert torch.equal(gathered.detach(), whole[0]) and (own[0].grad == sum(range(1, world + 1))).all()


def check_all(rank: int, world: int) -> None:
    warnings.simplefilter("error", fastssl.LocalRowsWarning)  # with a group no loss is local
    alone, _ = distributed.new_subgroups(1)
    two = distributed.new_group([0, 1])
    for size, group in ((1, alone), (2, two), (3, distributed.group.WORLD)):
        if rank < size:
            check_cases(rank, group, alone)
            if size == 2:
                check_compiled(rank, group)
    check_peers(rank, alone)


def test_the_loss_of_all_is_that_of_one_process(tmp_path):
    run_processes(check_all, 3, tmp_path)
