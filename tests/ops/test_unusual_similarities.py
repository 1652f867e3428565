"""Similarities of unusual inputs: a dimension of one entry may have any stride, as that of a transposed row; a scale of 0."""

import math

import pytest
import torch

from fastssl.functional import clip_loss, moco_loss, nt_xent, siglip_loss, similarity_lse, uniformity


def _turned(rows: int, width: int, seed: int, stride: int) -> torch.Tensor:
    """(rows, width), one of which is 1, with ``stride`` along the dimension of one entry."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    strides = [stride if size == 1 else step for size, step in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


CALLS = {
    "similarity_lse": lambda x, y: similarity_lse(x, y, scale=0.7),
    "symmetric": lambda x, y: similarity_lse(x, x, scale=0.7),
    "one pass": lambda x, y: similarity_lse(x, y.detach(), scale=0.7),
    "clip_loss": lambda x, y: clip_loss(x, y, 1.3),
    "siglip_loss": lambda x, y: siglip_loss(x, y, 1.3, -0.5),
    "nt_xent": lambda x, y: nt_xent(x, y, normalize=False),
    "moco_loss": lambda x, y: moco_loss(x, y, y.detach().t(), 0.5),
    "uniformity": lambda x, y: uniformity(torch.cat([x, y])),
}


@pytest.mark.parametrize("stride", [9, 1, 3, 2**40])
@pytest.mark.parametrize("rows, width", [(9, 1), (1, 5)])
@pytest.mark.parametrize("name", CALLS)
def test_a_single_entry_may_have_any_stride(name, rows, width, stride):
    def run(make):
        leaves = [make(seed).requires_grad_() for seed in (0, 1)]
        out = CALLS[name](*leaves)
        return out, torch.autograd.grad(out.sum(), leaves, allow_unused=True)

    odd, plain = run(lambda s: _turned(rows, width, s, stride)), run(lambda s: _turned(rows, width, s, width))
    torch.testing.assert_close(odd, plain, rtol=1e-5, atol=1e-6)


def test_a_transposed_row_is_a_column():
    x = torch.randn(1, 40)
    torch.testing.assert_close(similarity_lse(x.t(), x.t()), torch.logsumexp(x.t() @ x, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_of_zero_hides_no_nan(value):
    x, y = torch.randn(5, 4), torch.randn(7, 4)
    x[1, 2] = value
    lse = similarity_lse(x, y, scale=0.0)
    assert lse[1].isnan()
    torch.testing.assert_close(lse[[0, 2, 3, 4]], torch.full((4,), math.log(7)))
    assert siglip_loss(x, y[:5], 0.0, -1.0).isnan() and clip_loss(x, y[:5], 0.0).isnan()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7F800001, 0x7FC00001, 0x7FC00000, -0x400000, -1])
def test_every_nan_is_one(isa, bits):
    """Whatever its other bits are: those of a float16 NaN made float32 are all ones."""
    x, y = torch.randn(5, 4), torch.randn(40, 4)
    y.view(torch.int32)[17, 1] = bits
    assert y[17, 1].isnan()
    assert similarity_lse(x, y).isnan().all() and similarity_lse(x * 30, y).isnan().all()
    assert similarity_lse(y, x)[17].isnan() and similarity_lse(y, x).isnan().sum() == 1
    assert clip_loss(y, y.flip(1), 1.0).isnan() and siglip_loss(y, y.flip(1), 1.0, 0.0).isnan() and nt_xent(y, y.flip(1)).isnan()
