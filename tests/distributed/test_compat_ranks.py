"""Losses over the rows of several processes: each process's value and gradients against the published formula on the joined batch.

The gradient of a row is the sum over all processes, as the libraries' gathers give it.
"""

import importlib.util
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import solo
from fastssl.loss import ClipLoss, DCLLoss, DCLWLoss, NTXentLoss, SigLipLoss
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, WIDTH = 5, 6


def batch(world: int) -> list[torch.Tensor]:
    """Both sides of all processes' rows, (2, ROWS, WIDTH) of each."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, ROWS, WIDTH, dtype=torch.float64, generator=generator) for _ in range(world)]


def own(world: int, rank: int) -> torch.Tensor:
    """(ROWS, world ROWS) bool: which column is a row's own."""
    return torch.eye(world * ROWS, dtype=torch.bool)[rank * ROWS : (rank + 1) * ROWS]


def direction(rank, sides, temperature, decoupled=False, weight=None):
    """One view's rows against all rows of both, of lightly's NT-Xent or DCL."""
    losses, mine = [], own(len(sides), rank)
    everyone = [F.normalize(torch.cat([s[v] for s in sides]), dim=1) for v in (0, 1)]
    for v in (0, 1):
        rows, other = (everyone[i][rank * ROWS : (rank + 1) * ROWS] for i in (v, 1 - v))
        same, cross = (rows @ everyone[i].T / temperature for i in (v, 1 - v))
        positive = cross[mine]
        left_out = cross.masked_fill(mine, -torch.inf) if decoupled else cross
        lse = torch.cat([same.masked_fill(mine, -torch.inf), left_out], 1).logsumexp(1)
        losses.append(lse - (1.0 if weight is None else weight(rows, other)) * positive)
    return torch.cat(losses).mean()


def mises_fisher(rows, other):
    return 2 - len(rows) * torch.softmax((rows * other).sum(1).detach() / 0.5, 0)


def solo_simclr(rank, sides, indexes):
    z = F.normalize(torch.cat([s.flatten(0, 1) for s in sides]), dim=1)
    ids, mine = torch.cat(indexes), torch.eye(len(z), dtype=torch.bool)
    s = (z @ z.T / 0.2).masked_fill(mine, -torch.inf)
    loss = s.logsumexp(1) - s.masked_fill(ids[:, None] != ids, -torch.inf).logsumexp(1)
    return loss.chunk(len(sides))[rank].mean()


def own_key(rank, sides, temperature, constant):
    query, keys = F.normalize(sides[rank][0], dim=1), F.normalize(torch.cat([s[1] for s in sides]), dim=1)
    logits = query @ (keys.detach() if constant else keys).T / temperature
    return F.cross_entropy(logits, torch.arange(rank * ROWS, (rank + 1) * ROWS))


def siglip(rank, sides, bias):
    image, text = sides[rank][0], torch.cat([s[1] for s in sides])
    return F.softplus(-(2.0 * own(len(sides), rank) - 1) * (3.0 * image @ text.T + bias)).sum() / ROWS


#: The loss of this process from its own two sides, and the same from those of all.
CASES = {
    "nt_xent": (lambda a, b: NTXentLoss(0.3, gather_distributed=True)(a, b), partial(direction, temperature=0.3)),
    "dcl": (lambda a, b: DCLLoss(0.3, None, True)(a, b), partial(direction, temperature=0.3, decoupled=True)),
    "dclw": (
        lambda a, b: DCLWLoss(0.3, 0.5, True)(a, b),
        partial(direction, temperature=0.3, decoupled=True, weight=mises_fisher),
    ),
    "mocov3": (
        lambda a, b: solo.mocov3_loss_func(a, b, 0.3),
        lambda rank, sides: 0.6 * own_key(rank, sides, 0.3, constant=True),
    ),
    "nnclr": (lambda a, b: solo.nnclr_loss_func(a, b, 0.3), partial(own_key, temperature=0.3, constant=False)),
}


def of_all(published, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Value in this process, and the gradient of its rows summed over the losses of all."""
    sides = [t.clone().requires_grad_() for t in batch(world)]
    losses = [published(r, sides) for r in range(world)]
    return losses[rank].detach(), torch.autograd.grad(sum(losses), sides[rank])[0]


def mine(call, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    sides = batch(world)[rank].requires_grad_()
    loss = call(*sides)
    return loss.detach(), torch.autograd.grad(loss, sides)[0]


def check_losses(rank: int, world: int) -> None:
    for name, (call, published) in CASES.items():
        torch.testing.assert_close(mine(call, rank, world), of_all(published, rank, world), msg=lambda m, n=name: f"{n}: {m}")
    views, labels = (
        [torch.arange(ROWS).repeat(2) + ROWS * r for r in range(world)],
        [torch.arange(10) % 3 + r for r in range(world)],
    )
    for indexes in (views, labels):
        simclr = lambda a, b: solo.simclr_loss_func(torch.cat([a, b]), indexes[rank], 0.2)  # noqa: B023, E731
        torch.testing.assert_close(mine(simclr, rank, world), of_all(partial(solo_simclr, indexes=indexes), rank, world))
    for bias in (-2.0, None):
        for how in (None, "shift", "reduce", "gather"):
            loss = SigLipLoss(True, rank, world, how)
            want = of_all(partial(siglip, bias=bias or 0.0), rank, world)
            torch.testing.assert_close(mine(lambda a, b: loss(a, b, 3.0, bias), rank, world), want)  # noqa: B023


def check_refusals(rank: int, world: int) -> None:
    a, b = batch(world)[rank]
    for cls in (ClipLoss, SigLipLoss):
        with pytest.raises(ValueError, match=f"{cls.__name__}: world_size=7 needs a process group of as many processes, got"):
            cls(rank=rank, world_size=7)(a, b, 2.0, 0.0)
        with pytest.raises(ValueError, match=f"{cls.__name__}: rank must be that of this process, {rank}, got {1 - rank}"):
            cls(rank=1 - rank, world_size=2)(a, b, 2.0, 0.0)
    with pytest.raises(ValueError, match="DCLLoss: out0 and out1 must have the same shape"):
        DCLLoss(gather_distributed=True)(a, b[:3])


def check_clip(rank: int, world: int, path: str) -> None:
    """All forms of the gather, against open_clip's own module in the same processes."""
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for local in (False, True):
        for gradient in (False, True):
            options = {"local_loss": local, "gather_with_grad": gradient, "rank": rank, "world_size": world, "cache_labels": True}
            pair = ClipLoss(**options), theirs.ClipLoss(**options)
            for bias in (None, 0.5):
                results = [mine(lambda a, b: loss(a, b, 3.0, bias), rank, world) for loss in pair]  # noqa: B023
                torch.testing.assert_close(*results)
            a, b = batch(world)[rank]
            bias = 0.25 if local else None  # without local_loss theirs adds it twice
            torch.testing.assert_close(*[loss.get_logits(a, b, 2.0, bias) for loss in pair])
            assert torch.equal(*[loss.get_ground_truth(a.device, ROWS) for loss in pair])
    options = {"rank": rank, "world_size": world, "dist_impl": "gather"}
    results = [mine(lambda a, b: cls(**options)(a, b, 3.0, -1.0), rank, world) for cls in (SigLipLoss, theirs.SigLipLoss)]  # noqa: B023
    torch.testing.assert_close(*results)


def check_all(rank: int, world: int, path: str | None) -> None:
    check_losses(rank, world)
    check_refusals(rank, world)
    if path is not None:
        check_clip(rank, world, path)


def test_losses_over_the_rows_of_two_processes(tmp_path):
    found = importlib.util.find_spec("open_clip")
    path = None if found is None else f"{found.submodule_search_locations[0]}/loss.py"
    run_processes(check_all, 2, tmp_path, path)
