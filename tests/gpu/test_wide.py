"""``similarity_wide``, which never stores the logits, against ``similarity_chunked``. It serves only shapes of 2^22 logits or
more."""

import pytest
import torch

from fastssl.functional import clip_loss, nt_xent
from fastssl.testing.compare import relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LOSSES = {
    "nt_xent": lambda a, b: nt_xent(a, b, 0.1),
    "clip": lambda a, b: clip_loss(a, b, 20.0),
    "clip, far apart": lambda a, b: clip_loss(a, b, 400.0),
}


def gradients(loss, a, b):
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    value = loss(a, b)
    return value.detach(), *torch.autograd.grad(value, (a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(2048, 512), (4999, 768), (10000, 320)])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients(monkeypatch, on_device, name, rows, width, dtype):
    rows = on_device(rows, 64)
    gen = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(rows, width, generator=gen), dim=1).to(dtype).cuda() for _ in "ab")
    ours, again = (gradients(LOSSES[name], a, b) for _ in range(2))
    from fastssl.kernels import similarity_wide

    served = similarity_wide.takes(a, b)
    monkeypatch.setattr(similarity_wide, "takes", lambda x, y: False)
    theirs = gradients(LOSSES[name], a, b)
    assert served or rows < 2048
    for mine, other, same in zip(ours, theirs, again, strict=True):
        assert relative_error(mine, other.double()) <= 2 * torch.finfo(dtype).eps
        assert torch.equal(mine, same), "other bits in a second run: a race"
