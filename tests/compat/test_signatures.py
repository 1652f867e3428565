"""Signatures, attributes and state keys of the drop-ins are their originals', but for the table in docs/compat.md."""

import importlib.metadata
import sys
import types

import pytest
from torch import nn

from benchmarks.peers import ready_torchvision
from tests.support.compat_signatures import PAIRS, Pair, differences, table, written

VERSIONS = {
    "lightly": "1.6.0",
    "open_clip_torch": "3.3.0",
    "info-nce-pytorch": "0.1.4",
    "pytorch-metric-learning": "2.9.0",
    "timm": "1.0.31",
    "transformers": "5.23.0",
}


def test_the_table_of_differences_is_true():
    for name, version in VERSIONS.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        if found != version:
            pytest.skip(f"the table is of {name} {version}, here is {found}")
    ready_torchvision()
    assert len(PAIRS) >= 60
    assert table() == written(), "write it with python -m tests.support.compat_signatures --write"


def test_differences_are_found(monkeypatch):
    """Order, defaults, kinds, methods, attributes, state keys and values."""

    class Theirs(nn.Module):
        def __init__(self, a, b=1, *, c=2):
            super().__init__()
            self.scale, self.gone = b, 0
            self.register_buffer("bank", None)
            self.register_buffer("ptr", nn.Parameter(nn.Linear(1, 1).bias.data), persistent=False)

        def forward(self, x, y): ...
        def helper(self): ...

    class Ours(nn.Module):
        def __init__(self, b, a=3):
            super().__init__()
            self.scale = 5
            self.register_buffer("ptr", nn.Linear(1, 1).bias.data)

        def forward(self, x, y, z): ...

    module = types.ModuleType("a_module_of_two")
    module.Ours, module.Theirs = Ours, Theirs
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = "; ".join(differences(Pair("a_module_of_two:Ours", "a_module_of_two:Theirs", (1,))))
    for part in (
        "takes (b, a), there (a, b)",
        "without the arguments `c`",
        "`a` is 3, there 1",
        "`forward` more arguments: `z`",
        "without the methods `helper()`",
        "without the attributes `bank`, `gone`",
        "`scale` is 5, there 1",
        "with the state keys `ptr`",
    ):
        assert part in found, (part, found)
