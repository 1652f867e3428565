"""How the rehearsal's stand-in for a GPU behaves. On a GPU these tests show whether a GPU really behaves so."""

import copy

import pytest
import torch
from torch import nn

from fastssl.graphs import record
from tests.gpu.common import no_sync

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_tensors_know_their_device():
    x = torch.zeros(3, 4, device="cuda")
    assert x.is_cuda and x.device.type == "cuda" and (x @ x.T).is_cuda and not x.cpu().is_cuda
    layer = nn.Linear(4, 2).cuda()
    assert all(isinstance(p, nn.Parameter) and p.is_cuda for p in copy.deepcopy(layer).parameters())
    layer(x).sum().backward()
    assert layer.weight.grad.is_cuda


def test_two_devices_do_not_mix():
    x = torch.ones(3, device="cuda")
    for call in (lambda: x + torch.ones(3), lambda: torch.stack([x, torch.ones(3)]), lambda: torch.where(x > 0, x, torch.ones(3))):
        with pytest.raises(RuntimeError):
            call()
    assert (x + torch.tensor(2.0)).sum().item() == 9
    with pytest.raises(RuntimeError):
        torch.rand(3, device="cuda", generator=torch.Generator())


def test_a_wait_is_refused():
    x, mask = torch.ones(3, device="cuda"), torch.tensor([True, False, True], device="cuda")
    calls = (
        lambda: x[0].item(),
        lambda: x.cpu(),
        lambda: x[mask],
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: bool(x[0] > 0),
    )
    for call in calls:
        call()
        with no_sync(), pytest.raises(RuntimeError):
            call()
    with no_sync():
        x[mask] = 0.0
        torch.full((), 3.0, device="cuda").add_(x[0])


def test_a_graph_does_nothing_until_it_is_replayed():
    count, given = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    graph, twice = record(lambda: count.add_(given) * 2, warm=lambda: None)
    assert count.item() == 0
    for turn in range(1, 4):
        given.fill_(turn)
        graph.replay()
    assert count.item() == 6 and twice.item() == 12
