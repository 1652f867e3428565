"""Where processes disagree, do not come, or end, every other one raises an error that names the cause, within the timeout."""

import os
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed

from fastssl.distributed import Ranks, RanksError, failures
from fastssl.functional import clip_loss, info_nce, nt_xent, siglip_loss, sup_con
from fastssl.ops import similarity
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

A, B = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).unbind()
PATIENCE = 3  # seconds


def disagreements(odd: bool, group) -> dict:
    """Calls of which one process makes another one, and what the error says of both."""
    width, half = A[:, : 5 if odd else 6].contiguous(), (A.double(), B.double()) if odd else (A, B)
    labels = torch.arange(4) if odd else None
    rows = B.clone().requires_grad_(odd)
    return {
        r"temperature 0\.2.*temperature 0\.3": lambda: nt_xent(A, B, 0.3 if odd else 0.2, group=group),
        r"'N', 6.*'N', 5": lambda: nt_xent(width, width, group=group),
        r"torch\.float32.*torch\.float64": lambda: info_nce(*half, group=group),
        r"nt_xent with.*clip_loss with": lambda: clip_loss(A, B, 2.0, group=group) if odd else nt_xent(A, B, group=group),
        r"labels None.*labels 'torch\.int64'": lambda: sup_con(torch.stack([A, B], 1), labels, group=group),
        r"grad 'False False'.*grad 'False True'": lambda: siglip_loss(A, rows, 2.0, 0.0, group=group),
        r"transport gather.*transport ring": lambda: nt_xent(A, B, group=Ranks(group, "ring") if odd else group),
        r"reduction 'mean'.*reduction 'sum'": lambda: nt_xent(A, B, reduction="sum" if odd else "mean", group=group),
    }


def check(rank: int, world: int) -> None:
    failures.PATIENCE = 1.0
    everyone = distributed.group.WORLD
    for said, call in disagreements(rank == 1, everyone).items():
        with pytest.raises(RanksError, match=f"every process must make the same call, got rank 0: .*{said}"):
            call()
    assert nt_xent(A, B, group=everyone).isfinite()  # and the processes are still together

    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    forward, similarity._fwd = similarity._fwd, out_of_memory
    for transport in ("gather", "ring"):  # an error of a kernel is no failure of another process
        left = distributed.new_group()  # in which transfers stay unfinished
        with pytest.raises(RuntimeError, match=r"^out of memory"):
            info_nce(A.clone().requires_grad_(), B.clone().requires_grad_(), group=Ranks(left, transport))
    distributed.barrier()
    similarity._fwd = forward

    soon = distributed.new_group(timeout=timedelta(seconds=PATIENCE))
    nt_xent(A, B, group=soon)
    start = time.monotonic()
    if rank != 1:
        with pytest.raises(
            RanksError, match=r"nt_xent: the exchange of batch sizes and arguments failed in rank . of 3: rank 1 did"
        ):
            nt_xent(A, B, group=soon)
        assert time.monotonic() - start < 10 * PATIENCE
    distributed.barrier()

    z = A.clone().requires_grad_()
    for transport in ("gather", "ring"):
        last = distributed.new_group(timeout=timedelta(seconds=PATIENCE))
        loss = nt_xent(z, B, group=Ranks(last, transport))
        if rank == 0 and transport == "ring":
            os._exit(0)  # before its backward
        if transport == "ring":
            with pytest.raises(RanksError, match=r"similarity_lse: the ring of .* failed in rank [12] of 3: .*rank 0"):
                loss.backward()
        else:
            loss.backward()
    os._exit(0)


def test_every_process_says_what_is_wrong_in_the_others(tmp_path):
    run_processes(check, 3, tmp_path)


def test_a_note_of_an_earlier_failure_does_not_count():
    assert failures._is_recent(str(time.time()).encode()) and not failures._is_recent(str(time.time() - 60).encode())
