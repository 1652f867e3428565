"""Tensors of many megabytes that the ops make: rows written past the caches, and memory that is taken again."""

import os
import sys

import pytest
import torch

from fastssl import functional as F
from fastssl.ops._register import _C
from fastssl.testing import masking

linux_kernels = pytest.mark.skipif(_C is None or sys.platform != "linux", reason="C++ kernels keep memory on Linux alone")
has_words = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
LARGE = 10 << 20  # bytes; what a call of 12 MiB or more writes goes past the caches, and outputs are most of what a call moves


def rows_for(dtype, per_row: int) -> int:
    return -(-LARGE // (per_row * dtype.itemsize))


@pytest.mark.parametrize("width, dtype", [(7, torch.float32), (33, torch.bfloat16), (96, torch.float16), (13, torch.float64)])
def test_gather_and_its_gradient(width, dtype, isa):
    """Widths whose rows end within a register and within a cache line."""
    kept, length = 64, 80
    n = rows_for(dtype, kept * width)
    x = (torch.arange(n * length * width) % 1021).view(n, length, width).to(dtype)
    ids = masking.shuffled(n, length, x)[:, :kept].clone()
    ids[:, -1] = ids[:, 0]  # a repeated id, whose gradient is a sum
    ours = x.clone().requires_grad_()
    found = F.gather_tokens(ours, ids)
    assert torch.equal(found, masking.gather(x, ids))
    upstream = (torch.arange(found.numel()) % 97).view_as(found).to(dtype)
    found.backward(upstream)
    exact = torch.zeros(x.shape, dtype=torch.float64).scatter_add_(1, ids[:, :, None].expand(found.shape), upstream.double())
    assert torch.equal(ours.grad, exact.to(dtype))


@pytest.mark.parametrize(
    "dtype, token_dtype, positions",
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.float16, True),
        (torch.float64, torch.float64, False),
    ],
)
def test_restored_tokens(dtype, token_dtype, positions, isa):
    width, kept, length = 33, 20, 60
    n = rows_for(token_dtype, (1 + length) * width)
    x = torch.randn(n, 1 + kept, width).to(dtype)
    ids, token = masking.shuffled(n, length, x), torch.randn(width).to(token_dtype)
    pos = torch.randn(1 + length, width).to(token_dtype) if positions else None
    x, token = x.requires_grad_(), token.requires_grad_()
    found = F.restore_tokens(x, ids, token, pos_embed=pos)
    full = torch.cat([x[:, 1:].to(token_dtype), token.expand(n, length - kept, width)], 1)
    full = torch.cat([x[:, :1].to(token_dtype), masking.gather(full, ids)], 1)
    assert torch.equal(found, full if pos is None else full + pos)
    upstream = (torch.arange(found.numel()) % 97).view_as(found).to(token_dtype)
    found.backward(upstream)
    order, rows = ids.argsort(1) + 1, torch.arange(n)[:, None]
    assert torch.equal(x.grad, torch.cat([upstream[:, :1], upstream[rows, order[:, :kept]]], 1).to(dtype))
    assert torch.equal(token.grad, upstream[rows, order[:, kept:]].double().sum((0, 1)).to(token_dtype))


def big(rows: int, fill: float = 1.0):
    """(rows, 1024, 256) float32, a MiB a row, made by an op."""
    return F.gather_tokens(torch.full((rows, 1, 256), fill), torch.zeros(rows, 1024, dtype=torch.int64))


@linux_kernels
def test_memory_of_a_tensor_that_is_gone_is_taken_again():
    first = big(12)
    address = first.data_ptr()
    assert big(12).data_ptr() != address  # while it lives it is nobody else's
    del first
    taken = {big(12, 2.0).data_ptr() for _ in range(3)}
    assert address in taken and len(taken) == 1
    assert big(6).data_ptr() not in taken  # half as large: the memory waits for one that needs it


@linux_kernels
def test_living_tensors_keep_their_values():
    held = {}
    for step in range(16):
        held[step % 4] = (step, big(3 + step % 4, float(step)))
        assert all(bool((t == value).all()) for value, t in held.values())


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@linux_kernels
def test_a_profiler_sees_as_many_bytes_go_as_came():
    big(34)  # leaves a block that is larger than the next tensor
    with torch.profiler.profile(profile_memory=True) as profile:
        big(32)
    assert sum(event.self_cpu_memory_usage for event in profile.key_averages()) == 0


@linux_kernels
def test_no_more_than_256_mib_are_kept():
    before = resident_mb()
    many = [big(48) for _ in range(8)]
    assert resident_mb() > before + 380
    del many
    assert resident_mb() < before + 275


@linux_kernels
def test_a_new_tensor_is_a_tensor_like_any_other():
    storage = big(4, 3.0).untyped_storage()
    assert storage.resizable() and storage.nbytes() == 4 << 20
    larger = big(4, 3.0)
    larger.resize_(5, 1024, 256)[4] = 1.0
    assert bool((larger[:4] == 3.0).all())
    assert (big(4, 3.0).numpy() == 3.0).all()
    shared = big(4, 3.0).share_memory_()
    assert shared.is_shared() and bool((shared == 3.0).all())
    storage.resize_(0)
    assert storage.nbytes() == 0


@linux_kernels
def test_a_child_of_fork_has_its_own_memory():
    t = big(4, 3.0)
    address = t.data_ptr()
    del t
    child = os.fork()
    if child == 0:
        mine = torch.full((), 0.0)
        found = F.gather_tokens(torch.full((4, 1, 256), 5.0), torch.zeros(4, 1024, dtype=torch.int64))
        os._exit(0 if found.data_ptr() == address and float(found[3, 1023, 255]) == 5.0 and mine == 0 else 1)
    again = big(4, 7.0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert again.data_ptr() == address and bool((again == 7.0).all())


@pytest.mark.skipif(_C is not None and not has_words, reason="torch before 2.13 keeps the words of an error to itself")
def test_what_memory_cannot_hold_is_refused_in_the_words_of_torch():
    with pytest.raises(RuntimeError, match=r"can't allocate memory: you tried to allocate \d+ bytes"):
        F.mask_ids((2**31 - 1, 2**17), seed=3)  # 2 PiB, more than addresses reach
