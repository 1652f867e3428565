"""Models, their changes and comparisons that the tests of momentum encoders share."""

import importlib
from importlib.util import find_spec

import pytest
import torch
from torch import nn

KINDS = {
    "float32": {},
    "averaged buffers": {"buffers": "ema"},
    "bfloat16": {"dtype": torch.bfloat16, "buffers": "ema"},
    "float16": {"dtype": torch.float16},
    "stochastic": {"dtype": torch.bfloat16, "rounding": "stochastic", "seed": 7},
}


class Net(nn.Module):
    """Batch normalisation, channels_last, tied, frozen, 0-d, empty and non-contiguous parameters, integer buffers."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        if tied:
            self.b.weight = self.a.weight
        self.b.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.strided = nn.Parameter(torch.randn(6, 8)[:, ::2])
        self.register_buffer("count", torch.zeros(3, dtype=torch.int32))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool), persistent=False)
        self.register_buffer("hidden", torch.randn(5), persistent=False)
        self.register_buffer("none", None)

    def forward(self, x):
        return self.b(self.a(self.norm(self.conv(x)).mean((2, 3)))) * self.scale


@torch.no_grad()
def wander(model: nn.Module) -> None:
    """Another state of every tensor, as training leaves it."""
    for t in (*model.parameters(), *model.buffers()):
        if t.dtype == torch.bool:
            t.logical_not_()
        elif t.is_floating_point():
            t.add_(torch.randn_like(t), alpha=0.1)
        else:
            t.add_(1)


def small(**kwargs) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(**kwargs)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [t.detach().clone() for t in (*module.parameters(), *module.buffers())]


def same(a, b) -> bool:
    a, b = (values(m) if isinstance(m, nn.Module) else m for m in (a, b))
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def peer(name: str):
    if find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    return importlib.import_module(name)


def replace_head(m):
    m[2] = nn.Linear(5, 3)


def assign_state(m):
    m.load_state_dict(
        {k: torch.randn_like(t) if t.is_floating_point() else t.clone() for k, t in m.state_dict().items()}, assign=True
    )
