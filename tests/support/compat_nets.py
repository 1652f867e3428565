"""What the tests of the drop-ins share: other libraries, a small encoder, and what a step of training does to it."""

import importlib
import itertools

import pytest
import torch
from torch import nn

from benchmarks.peers import ready_torchvision


def library(name):
    """A module of another library, or the test is skipped where it is not installed."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    ready_torchvision()
    return importlib.import_module(name)


class Net(nn.Module):
    """A small encoder with everything that matters to an update: batch norm, integer buffers, a frozen and a tied parameter."""

    def __init__(self, num_classes=8, tied=False):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, num_classes)
        self.conv.bias.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        if tied:
            self.head = nn.Linear(6, num_classes)
            self.head.weight = self.fc.weight

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


@torch.no_grad()
def wander(net, size=0.1):
    """What a step of training does to parameters and buffers."""
    for t in itertools.chain(net.parameters(), net.buffers()):
        t.add_(torch.randn_like(t).mul_(size) if t.is_floating_point() else torch.randint(1, 5, t.shape))


def state(module):
    return {name: t.detach().clone() for name, t in itertools.chain(module.named_parameters(), module.named_buffers())}


def images(count):
    return torch.randn(count, 3, 6, 6)
