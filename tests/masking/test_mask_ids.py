"""Random masks: ids bit for bit those of a stable argsort, or of a seed; roundings, extremes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl import functional as F
from fastssl.reference import mask_ids as mask_reference
from fastssl.testing import masking

SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 65504.0)


def assert_stable_argsort(noise, keep):
    ids = F.mask_ids(tuple(noise.shape), noise=noise, num_keep=keep)
    shuffle = noise.argsort(dim=1, stable=True)
    assert torch.equal(torch.cat([ids.ids_keep, ids.ids_mask], 1), shuffle)
    assert torch.equal(ids.ids_restore, shuffle.argsort(1))
    assert torch.equal(ids.mask, (ids.ids_restore >= keep).float()) and ids.mask.dtype == torch.float32
    assert ids.ids_keep.shape == (len(noise), keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 49, 196, 1000, 1568, 65536])
def test_ids_are_those_of_a_stable_argsort(length, dtype):
    rows = 3 if length > 2000 else 17
    assert_stable_argsort(torch.rand(rows, length).to(dtype), length // 4)  # in 16 bits most values have an equal


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 10**6), st.booleans())
def test_ties_and_special_values(rows, length, seed, special):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-3, 3, (rows, length), generator=generator).float()
    if special:
        noise = torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), (rows, length), generator=generator)]
    for dtype in (torch.float32, torch.float64):
        assert_stable_argsort(noise.to(dtype), min(length, seed % (length + 1)))


def few_last_bits(rows, length, dtype):
    """Neighbouring numbers around 1: the first bits of most keys are equal, in float64 those that float32 has."""
    return 1 + torch.randint(0, 200, (rows, length)).to(dtype) * torch.finfo(dtype).eps


KINDS = {
    "uniform": lambda rows, length, dtype: torch.rand(rows, length, dtype=torch.float64).to(dtype),
    "signed": lambda rows, length, dtype: torch.randn(rows, length, dtype=torch.float64).to(dtype),
    "special": lambda rows, length, dtype: torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), (rows, length))].to(dtype),
    "equal": lambda rows, length, dtype: torch.full((rows, length), 0.5, dtype=dtype),
    "near": few_last_bits,
    "a few near": lambda rows, length, dtype: torch.where(
        torch.rand(rows, length) < 0.9, torch.rand(rows, length).to(dtype), few_last_bits(rows, length, dtype)
    ),
    "falling": lambda rows, length, dtype: torch.arange(length, 0, -1).expand(rows, length).to(dtype),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_order_is_a_stable_argsort(kind, dtype, isa):
    """Lengths around a register, around the sizes of the sorting networks, and beyond them."""
    for length in (1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 100, 127, 128, 129, 196, 254, 255, 256, 257):
        assert_stable_argsort(KINDS[kind](5, length, dtype), length // 3)


def test_seeded_ids_are_those_of_every_instruction_set(isa):
    for length in (1, 5, 16, 64, 65, 196, 256, 257):
        ids = F.mask_ids((3, length), 0.6, seed=9)
        shuffle = mask_reference.mask_ids(None, torch.tensor(9), 3, length, 0)[0]
        assert torch.equal(torch.cat(ids[:2], 1), shuffle)


def test_noise_may_be_strided():
    noise = torch.rand(5, 60)
    assert_stable_argsort(noise[:, ::3], 4)
    assert_stable_argsort(noise.t(), 2)


@pytest.mark.parametrize("rows, length", [(1, 1), (3, 5), (4, 196), (2, 5000)])
@pytest.mark.parametrize("seed", [0, 3, -1, 2**63 - 1, -(2**63)])
def test_seeded_ids_are_those_of_the_reference(rows, length, seed):
    ids = F.mask_ids((rows, length), 0.6, seed=seed)
    keep = int(length * (1 - 0.6))
    shuffle, restore, mask = mask_reference.mask_ids(None, torch.tensor(seed), rows, length, keep)
    assert torch.equal(torch.cat(ids[:2], 1), shuffle) and torch.equal(ids.ids_restore, restore) and torch.equal(ids.mask, mask)
    again = F.mask_ids((rows + 2, length), 0.6, seed=torch.tensor([seed]))
    assert torch.equal(again.ids_restore[:rows], ids.ids_restore)  # of the place in the batch and the seed alone


def test_seeds_rows_and_patches_are_all_different():
    one, other = (F.mask_ids((64, 196), 0.75, seed=seed).ids_restore for seed in (1, 2))
    assert len(torch.unique(torch.cat([one, other]), dim=0)) == 128
    kept = F.mask_ids((4000, 50), 0.6, seed=5).mask.eq(0).double().mean(0)
    assert (kept - 0.4).abs().max() < 5 * (0.4 * 0.6 / 4000) ** 0.5


def test_without_noise_it_is_one_call_of_torch_rand():
    torch.manual_seed(7)
    ours = F.mask_ids((4, 30), 0.5)
    torch.manual_seed(7)
    assert torch.equal(ours.ids_restore, F.mask_ids((4, 30), 0.5, noise=torch.rand(4, 30)).ids_restore)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(ours.ids_restore, F.mask_ids((4, 30), 0.5, generator=generator).ids_restore)


@pytest.mark.parametrize(
    "length, ratio, kept",  # MAE, stable-pretraining, SimMIM, timm
    [(196, 0.75, (49, 49, 49, 49)), (196, 0.6, (78, 79, 78, 78)), (196, 0.9, (19, 20, 19, 19)), (100, 0.9, (9, 10, 10, 9))]
    + [(1, 0.75, (0, 1, 0, 1)), (7, 0.0, (7, 7, 7, 7)), (3, 0.999, (0, 1, 0, 1)), (7, 1.0, (0, 0, 0, 1)), (1, 1, (0, 0, 0, 1))],
)
def test_roundings_of_the_libraries(length, ratio, kept):
    names = ("keep_floor", "mask_floor", "mask_ceil", "keep_one")
    assert tuple(F.num_kept(length, ratio, name) for name in names) == kept
    for name, keep in zip(names, kept, strict=True):
        assert F.mask_ids((2, length), ratio, rounding=name).ids_keep.shape[1] == keep


def test_random_masking_is_the_papers():
    x, noise = torch.randn(5, 30, 8, requires_grad=True), torch.rand(5, 30)
    for ours, theirs in zip(F.random_masking(x, 0.7, noise=noise), masking.random_masking(x, 0.7, noise), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    F.random_masking(x, 0.7, noise=noise)[0].sum().backward()
    assert torch.equal(x.grad.sum(2) > 0, masking.random_masking(x, 0.7, noise)[1] == 0)


@pytest.mark.parametrize("length, ratio", [(1, 0.75), (8, 0.0), (1, 0.0), (8, 1.0), (1, 1)])
def test_all_or_nothing_masked(length, ratio):
    x = torch.randn(2, length, 3, requires_grad=True)
    kept, mask, restore = F.random_masking(x, ratio)
    assert kept.shape == (2, int(length * (1 - ratio)), 3) and mask.sum() == 2 * (length - kept.shape[1])
    token = torch.zeros(3, requires_grad=True)
    full = F.restore_tokens(kept, restore, token, num_prefix_tokens=0)
    full.sum().backward()
    assert torch.equal(full, x if ratio == 0 else torch.zeros_like(x)) and token.grad.sum() == 3 * mask.sum()


@pytest.mark.parametrize("mask_class_token", [False, True])
def test_token_masks_are_a_partition(mask_class_token):
    keep, hidden = F.random_token_mask((6, 20), 0.6, mask_class_token)
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(20).expand(6, 20))
    assert keep.shape[1] == 8
    assert mask_class_token or not keep[:, 0].any()
