"""The symmetric backward for Hopper in Gluon against the Triton kernel. The library uses it where a tuned table asks for it; here
the test sets such a tile."""

import importlib
import sys

import pytest
import torch

from fastssl.functional import clip_loss, nt_xent
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig
from fastssl.testing.compare import relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
REHEARSING = "rehearsal" in sys.modules
LOSSES = {
    "nt_xent": lambda a, b, tau: nt_xent(a, b, tau),
    "clip": lambda a, b, tau: clip_loss(a, b, 1.0 / tau),
}


def gradients(loss, a, b, tau):
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    return torch.autograd.grad(loss(a, b, tau), (a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(8192, 128), (8192, 64), (16384, 128)])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(monkeypatch, on_device, name, rows, width, dtype):
    if not REHEARSING and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("only a Hopper has these instructions")
    rows = on_device(rows, 64)
    gen = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(rows, width, generator=gen), dim=1).to(dtype).cuda() for _ in "ab")
    theirs = gradients(LOSSES[name], a, b, 0.1)
    similarity_hopper = importlib.import_module("fastssl.kernels.similarity_hopper")  # here, since not every Triton has Gluon
    launched, usual = [], plan.pick_config
    serve = similarity_hopper.narrow_backward
    monkeypatch.setattr(similarity_hopper, "narrow_backward", lambda *args: launched.append(serve(*args)))
    tile = TileConfig(128, 64, 8, 3, specialised=True)
    monkeypatch.setattr(plan, "pick_config", lambda name, *rest: tile if name == "bwd plain" else usual(name, *rest))
    ours = gradients(LOSSES[name], a, b, 0.1)
    again = gradients(LOSSES[name], a, b, 0.1)
    assert launched or REHEARSING
    for mine, other, same in zip(ours, theirs, again, strict=True):
        assert relative_error(mine, other.double()) <= 2 * torch.finfo(dtype).eps
        assert torch.equal(mine, same), "other bits in a second run: a race"
