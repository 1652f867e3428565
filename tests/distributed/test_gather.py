"""``gather_rows``, and queues and banks that gather: two and three processes give what one gives for the joined batch."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fastssl
from fastssl import functional
from fastssl.distributed import gather_rows, gather_rows_with_grad
from fastssl.loss import ClipLoss, NTXentLoss, SigLipLoss
from fastssl.momentum.queue import MoCoQueue
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def of_rank(rank: int, rows: int, *width: int, dtype=torch.float32):
    numbers = torch.arange(rows * max(1, torch.Size(width).numel())).reshape(rows, *width)
    return (numbers + 100 * rank).to(dtype)


def check_gather(rank: int, world: int) -> None:
    for width, dtype in (
        ((), torch.int16),
        ((2, 2), torch.float32),
        *(((3,), dtype) for dtype in (*FLOATS, torch.int64, torch.bool)),
    ):
        for counts in ([2] * world, range(1, world + 1), [2] * (world - 1) + [0], [0] * world):
            parts = [of_rank(r, n, *width, dtype=dtype) for r, n in enumerate(counts)]
            assert torch.equal(gather_rows(parts[rank]), torch.cat(parts))
    leaf = of_rank(rank, 3, 2).t().requires_grad_()
    joined = gather_rows(leaf, even=True)
    assert torch.equal(joined, torch.cat([of_rank(r, 3, 2).t() for r in range(world)])) and not joined.requires_grad
    for different in (torch.zeros(2, 3 + rank), torch.zeros(2, 3, dtype=FLOATS[rank])):
        with pytest.raises(ValueError, match="rows must have one dtype and width in every process"):
            gather_rows(different)
    alone = distributed.new_group([0])
    if rank:
        with pytest.raises(ValueError, match=f"group must contain this process, rank {rank}"):
            gather_rows(leaf, alone)
    else:
        assert torch.equal(gather_rows(leaf, alone), leaf)


def check_gradient(rank: int, world: int) -> None:
    """The gradient of each row is the sum of the gradients that all processes have for it."""
    for dtype in FLOATS:
        leaf = of_rank(rank, 2, 3, dtype=dtype).t().requires_grad_()
        joined, first = gather_rows_with_grad(leaf)
        assert torch.equal(joined, torch.cat([of_rank(r, 2, 3, dtype=dtype).t() for r in range(world)])) and first == 3 * rank
        (joined * (1 + rank) * torch.arange(len(joined))[:, None]).sum().backward()
        want = (torch.arange(3 * rank, 3 * rank + 3) * (world * (world + 1) // 2))[:, None].expand(3, 2)
        assert torch.equal(leaf.grad, want.to(dtype))
    for rows in (of_rank(rank, 2 + rank, 3), of_rank(rank, 2, 3 + rank), of_rank(rank, 2, 3, dtype=FLOATS[rank])):
        with pytest.raises(ValueError, match=r"gather_rows_with_grad: (every process must bring as many|rows must have one dtype)"):
            gather_rows_with_grad(rows)


def check_queue(rank: int, world: int) -> None:
    """The pushes of all ranks, the last of which has fewer rows or none, are those of one process with the joined batch."""
    torch.manual_seed(7)
    queue, one = MoCoQueue(3, 7, labels=True, gather_distributed=True), MoCoQueue(3, 7, labels=True)
    one.load_state_dict(queue.state_dict())
    for last in (2, 1, 0):
        counts = [2] * (world - 1) + [last]
        keys, labels = ([of_rank(r, n, *width) for r, n in enumerate(counts)] for width in ((3,), ()))
        queue.push(keys[rank], labels[rank].int(), even=last == 2)
        one.push(torch.cat(keys), torch.cat(labels).long())
        assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), one.buffers(), strict=True))


def check_ddp(rank: int) -> None:
    """DDP makes queues equal when it is built; queues that were pushed without gathering it makes equal at the next forward."""
    torch.manual_seed(rank)
    queue = MoCoQueue(3, 7)
    model = nn.Sequential(nn.Linear(2, 2), queue)
    model.forward = model[0].forward
    wrapped = DistributedDataParallel(model)
    for push in (False, True):
        if push:
            queue.push(torch.full((2, 3), float(rank)))
            wrapped(torch.ones(2, 2))
        first, here = gather_rows(queue.queue[None])[[0, rank]]
        assert torch.equal(first, here) and bool((here[:, :2] == 0).all()) == push


def check_loss(rank: int, world: int) -> None:
    views = [F.normalize(torch.randn(2 * world, 3, generator=torch.Generator().manual_seed(v)), dim=1) for v in (0, 1)]
    mine = [view[2 * rank : 2 * rank + 2].requires_grad_() for view in views]
    torch.manual_seed(rank)
    loss, here = (NTXentLoss(0.5, (11, 3), gather, persistent_bank=True) for gather in (True, False))
    here.load_state_dict(loss.state_dict())
    assert torch.equal(loss(*mine), here(*mine))
    torch.testing.assert_close(loss.memory_bank.bank[: 2 * world], views[1])


def check_local(rank: int, world: int) -> None:
    """Each loss of local rows warns once; losses of joined rows, of a queue and of pairs do not warn. Joined rows are exact."""
    a, b = of_rank(rank, 4, 3).sin(), of_rank(rank, 4, 3).cos()
    joined = [gather_rows_with_grad(t)[0] for t in (a, b)]
    calls = {
        "nt_xent": lambda: functional.nt_xent(a, b),
        "dcl": lambda: functional.dcl(a, b),
        "hard_nt_xent": lambda: functional.hard_nt_xent(a, b),
        "info_nce": lambda: functional.info_nce(a, b),
        "moco_v3_loss": lambda: functional.moco_v3_loss(a, b),
        "clip_loss": lambda: ClipLoss()(a, b, 1.0),
        "siglip_loss": lambda: SigLipLoss()(a, b, 1.0, 0.0),
        "sup_con": lambda: functional.sup_con(torch.stack([a, b], 1)),
        "n_pair": lambda: functional.n_pair(a, b),
        "triplet_batch": lambda: functional.triplet_batch(a, torch.arange(4) % 2),
        "uniformity": lambda: functional.uniformity(a),
        "NTXentLoss": lambda: NTXentLoss()(a, b),
        "of queues": lambda: (functional.moco_loss(a, b, b.t()), functional.info_nce(a, b, b), NTXentLoss(0.5, (5, 3))(a, b)),
        "of pairs": lambda: (functional.byol_loss(a, b), functional.negative_cosine(a, b), functional.alignment(a, b)),
        "of all": lambda: (NTXentLoss(0.5, 0, True)(a, b), ClipLoss(rank=rank, world_size=world)(a, b, 1.0)),
    }
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
            call()
        said = [str(w.message) for w in caught if w.category is fastssl.LocalRowsWarning]
        assert len(said) == (not name.startswith("of ")), name
        assert all(words.startswith(f"{name}: {world} processes train together") and "group=" in words for words in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastssl.LocalRowsWarning)
        everyone = [torch.cat([f(of_rank(r, 4, 3)) for r in range(world)]) for f in (torch.sin, torch.cos)]
        assert torch.equal(functional.nt_xent(*joined), functional.nt_xent(*everyone))


def check_all(rank: int, world: int) -> None:
    check_gather(rank, world)
    check_gradient(rank, world)
    check_queue(rank, world)
    check_loss(rank, world)
    check_local(rank, world)
    if world == 2:
        check_ddp(rank)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_gather_before_they_push(world, tmp_path):
    run_processes(check_all, world, tmp_path)


def test_even_rows_are_gathered_and_pushed_without_a_look_at_data():
    """Tensors without data stand for a GPU that must not be waited for: counts of uneven rows cannot be read there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        memory, keys = MoCoQueue(3, 7, gather_distributed=True).to("meta"), torch.empty(4, 3, device="meta")
        memory.push(keys, even=True)
        assert gather_rows(keys, even=True).shape == (8, 3)
        with pytest.raises(NotImplementedError, match="no data"):
            memory.push(keys)
    finally:
        distributed.destroy_process_group()


def test_gather_in_one_process_is_the_identity_and_refuses_in_words():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows).data_ptr() == rows.data_ptr() and not gather_rows(rows).requires_grad
    with pytest.raises(TypeError, match=r"gather_rows: rows must be a tensor \(N, ...\), got list"):
        gather_rows([1.0])
    with pytest.raises(ValueError, match="got a tensor without dimensions"):
        gather_rows(torch.tensor(1.0))
    with pytest.raises(ValueError, match="group was given, but there is no process group"):
        gather_rows(rows, object())
    assert gather_rows_with_grad(rows) == (rows, 0)
    with pytest.raises(TypeError, match=r"gather_rows_with_grad: rows must be a tensor \(N, ...\), got list"):
        gather_rows_with_grad([1.0])
