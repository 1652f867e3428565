"""Masks on a GPU have the CPU's bits, take one launch, and never wait; a graph reads the seed on the device at each replay."""

from functools import partial

import pytest
import torch

from fastssl.graphs import record
from fastssl.masking import block_mask, corrupt_spans, grid_mask, mask_tokens, multi_block_mask, span_mask, tube_mask
from fastssl.ops._register import OWNERS
from fastssl.ops.block_mask import _aspects
from tests.gpu.common import no_sync

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BERT = {"mask_id": 103, "vocab_size": 30522}


def seed_of(number: int, device="cuda"):
    """A seed that is filled on the device, without a copy for which the host would wait."""
    return torch.full((), number, dtype=torch.int64, device=device)


def tokens(rows=300, length=257, device="cuda"):
    """Ids, and a mask of those that are special."""
    ids = torch.arange(rows * length, device=device).reshape(rows, length) * 7919 % 30522
    return ids, ids % 11 == 0


def masked_tokens(seed, special=True):
    ids, never = tokens(device=seed.device)
    return torch.stack(mask_tokens(ids, special=never if special else None, seed=seed, **BERT))


CALLS = {
    "grid": lambda seed: grid_mask(300, (12, 12), unit=4, seed=seed),
    "tube": lambda seed: torch.cat([t.double() for t in tube_mask(100, 8, 196, seed=seed)], 1),
    "block": lambda seed: block_mask(1000, (14, 14), 75, min_block=16, seed=seed),
    "exact block": lambda seed: block_mask(1000, (14, 14), 118, exact=True, seed=seed),
    "long block": lambda seed: block_mask(33, (8, 64), 300, exact=True, seed=seed),
    "large block": lambda seed: block_mask(5, (512, 512), 100_000, max_block=5000, min_block=100, seed=seed),
    "goals": lambda seed: block_mask(197, (14, 14), torch.arange(197, device=seed.device), exact=True, seed=seed),
    "spans": lambda seed: span_mask(200, 1500, seed=seed),
    "short spans": lambda seed: span_mask(200, 1500, lengths=torch.arange(200, device=seed.device) * 7, min_masks=2, seed=seed),
    "tokens": masked_tokens,
    "plain tokens": partial(masked_tokens, special=False),
    "corrupted": lambda seed: torch.cat(corrupt_spans(tokens(device=seed.device)[0], sentinel_start=32099, eos_id=1, seed=seed), 1),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.mark.cuda_only
def test_the_owner_is_cuda():
    assert OWNERS["block_mask"]["CUDA"] == OWNERS["mask_tokens"]["CUDA"] == "CUDA C++"


@pytest.mark.parametrize("number", [0, 7, -1, 2**62 + 1])
@each_call
def test_the_cpus_bits_each_time(call, number):
    expected = call(seed_of(number, "cpu"))
    for _ in range(3):
        found = call(seed_of(number))
        assert found.is_cuda and torch.equal(found.cpu(), expected)


def test_the_cpus_blocks_of_a_context():
    for how in ({}, {"context_keep": 20}):
        ours, theirs = (multi_block_mask(500, (14, 14), seed=9, device=device, **how) for device in ("cuda", "cpu"))
        assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))


def test_context_of_a_given_size_without_a_sync():
    torch.zeros((), device="cuda")
    with no_sync():
        found = multi_block_mask(500, (14, 14), context_keep=20, device="cuda", seed=9)
    assert found.context_ids.shape == (500, 20)


@each_call
def test_no_sync(call):
    call(seed_of(3))
    with no_sync():
        call(seed_of(4))


def test_torchs_generator_decides_without_a_sync():
    ids, _ = tokens()
    mask_tokens(ids, **BERT), block_mask(64, (14, 14), 75, device="cuda")
    drawn = []
    with no_sync():
        for start in (1, 1, 2):
            torch.cuda.manual_seed(start)
            drawn.append((*mask_tokens(ids, **BERT), block_mask(64, (14, 14), 75, device="cuda")))
    assert all(map(torch.equal, drawn[0], drawn[1])) and not any(map(torch.equal, drawn[0], drawn[2]))


@pytest.mark.parametrize("op", ["mask_tokens", "block_mask"])
def test_one_launch(op, kernels_of):
    ids, special = tokens()
    seed, goals = seed_of(3), torch.arange(197, device="cuda")
    aspects = _aspects(0.3, 1 / 0.3, seed.device)
    calls = {
        "mask_tokens": lambda: torch.ops.fastssl.mask_tokens(ids, special, seed, 103, 30522, 2**28, 2**29, 2**30, -100),
        "block_mask": lambda: torch.ops.fastssl.block_mask(goals, seed, aspects, 197, 14, 14, 4, 196, 10, True),
    }
    names = kernels_of(calls[op])
    assert len(names) == 1, names


@each_call
def test_a_graph_reads_the_seed_anew(call):
    seed = seed_of(1)
    graph, out = record(lambda: call(seed))
    for number in (5, 6):
        seed.fill_(number)
        graph.replay()
        assert torch.equal(out.cpu(), call(seed_of(number, "cpu")))
