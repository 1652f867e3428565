"""What the tests of the optimizers share."""

from functools import partial

import pytest
import torch

from benchmarks.peers import ready_torchvision

SHAPES = [(64, 33), (129,), (16, 8, 3, 3), (), (200, 181), (0, 4)]  # the fifth: several chunks of a kernel
FORMS = ["moco_v3", "larc", "paper"]
LARS_RATES = {"lr": 3.0, "momentum": 0.9, "weight_decay": 0.05}


def timm(**options):
    ready_torchvision()
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.optim.lars import Lars

    return partial(Lars, **options)


def lightly(**options):
    ready_torchvision()
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.utils.lars import LARS as Lightly

    return partial(Lightly, **options)


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def lists(count, *, dtype=torch.float32, shapes=SHAPES, seed=3):
    """``count`` lists of random tensors, one for each shape."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(count)]


def assert_all_close(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def clones(*many):
    return [[t.clone() for t in tensors] for tensors in many]


def equal(first, second):
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))
