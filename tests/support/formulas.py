"""A tiny encoder, and formulas in float64 that methods are compared with."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def tiny(channels: int = 3, width: int = 10) -> nn.Module:
    """images (B, channels, 4, 4) -> (B, width)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, width), nn.Tanh())


def rows64(x):
    return F.normalize(x.double(), dim=1)


def cross_entropy64(query, key, temperature):
    """InfoNCE of query i against key i among all keys, from the whole matrix."""
    return F.cross_entropy(rows64(query) @ rows64(key).T / temperature, torch.arange(len(query)))


def gradients_agree(method: nn.Module, loss, expected) -> None:
    """Value and every parameter's gradient of the method's loss against those of the formula."""
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    parameters = [p for p in method.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, retain_graph=True, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def assert_one_backward_serves_all(method: nn.Module, given: list[tuple]) -> None:
    """Several forwards and one backward of the sum of their losses give the same gradients as a backward after each forward.

    ``given`` holds the arguments of each forward. A forward's graph must therefore outlive what later forwards move.
    """
    seen = []
    for at_once in (False, True):
        own = copy.deepcopy(method)
        torch.manual_seed(4)
        if at_once:
            sum(own(*each) for each in given).backward()
        else:
            for each in given:
                own(*each).backward()
        seen.append([p.grad for p in own.parameters() if p.grad is not None])
    assert len(seen[0]) > 3
    torch.testing.assert_close(*seen, rtol=1e-9, atol=1e-12)
