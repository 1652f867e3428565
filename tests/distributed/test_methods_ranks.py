"""Methods in two processes: shuffled keys, and queues and banks that are the same in both, with and without DDP."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from fastssl.loss.parts import local_rows
from fastssl.methods import (
    BERT,
    BYOL,
    CLIP,
    CMC,
    CPC,
    NNCLR,
    InstDisc,
    MeanTeacher,
    MoCo,
    MoCoV3,
    SigLIP,
    SimCLR,
    SimCSE,
    SimSiam,
    SupCon,
)
from tests.methods.test_odd_arguments import Text
from tests.support.formulas import tiny
from tests.support.processes import run_processes

SIZES = (6, 3)  # images a batch in each process
HOW = ("plain", "ddp", "checkpointed")
INDEX = ([0, 3, 5, 7, 8, 9], [3, 1, 9])  # samples 3 and 9 are in the batches of both
MADE = {
    "moco": lambda: MoCo(tiny(), 10, queue_size=32, projection_dim=6),
    "nnclr": lambda: NNCLR(tiny(), 10, queue_size=32, projection_dim=6),
    "instdisc": lambda: InstDisc(tiny(), 10, 10, projection_dim=6, momentum=0.25),
}


LOCAL = {
    "simclr": lambda: SimCLR(tiny()),
    "supcon": lambda: SupCon(tiny()),
    "nnclr": MADE["nnclr"],
    "moco_v3": lambda: MoCoV3(tiny()),
    "cmc": lambda: CMC([tiny(), tiny()]),
    "cpc": lambda: CPC(tiny()),
    "clip": lambda: CLIP(tiny(), Text()),
    "siglip": lambda: SigLIP(tiny(), Text()),
    "simcse": lambda: SimCSE(Text(), hidden_dim=8),
}
EVERY = LOCAL | {
    "moco": MADE["moco"],
    "instdisc": MADE["instdisc"],
    "byol": lambda: BYOL(tiny()),
    "simsiam": lambda: SimSiam(tiny(), projection_dim=8),
    "mean_teacher": lambda: MeanTeacher(tiny(), 4),
    "bert": lambda: BERT(30, mask_id=29, width=8, depth=1, heads=2),
}
VIEWS, PARTS = tuple(torch.rand(2, 4, 3, 4, 4)), (torch.rand(3, 5, 3, 4, 4),)
WORDS = torch.arange(20).view(4, 5), torch.ones(4, 5)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MADE[name]()


def shuffled(rank: int, counts: tuple[int, int]) -> dict:
    """Whose images this process's teacher saw, its keys, what they are without shuffling, and the queue."""
    torch.manual_seed(0)
    method = MoCo(tiny(), 10, queue_size=32)
    torch.manual_seed(rank)
    images, owners = rank + torch.rand(counts[rank], 3, 4, 4), []
    method.teacher.module.backbone.register_forward_hook(lambda _, inputs, __: owners.append(inputs[0][:, 0, 0, 0].long()))
    keys = method.keys(images)
    method.queue.push(keys)
    with torch.no_grad():
        plain = method.unit(method.teacher(images))
    return {"owners": owners[0], "keys": keys, "plain": plain, "queue": method.queue.queue}


def trained(rank: int, name: str, how: str) -> list[dict]:
    """Two steps: the rows that this process brings, and the state after them."""
    method, rows, seen = made(name), [], []
    if name == "moco":
        own = method.keys
        method.keys = lambda images: (rows.append(own(images)), rows[-1])[1]
    else:
        method.projection_head.register_forward_hook(lambda _, __, z: rows.append(F.normalize(z.detach(), dim=1)[: SIZES[rank]]))
    outer = nn.parallel.DistributedDataParallel(method) if how == "ddp" else method
    if how == "checkpointed":
        outer = partial(checkpoint, method, use_reentrant=False)
    torch.manual_seed(10 + rank)
    for _ in range(2):
        view0, view1 = torch.rand(2, SIZES[rank], 3, 4, 4)
        outer(view0, torch.tensor(INDEX[rank]) if name == "instdisc" else view1).backward()
        seen.append({"rows": rows[-1], "state": {key: value.clone() for key, value in method.state_dict().items()}})
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
    return seen


def warned(rank: int) -> dict[str, list[str]]:
    """What two forwards of each method say about several processes."""
    said = {}
    for name, make in EVERY.items():
        local_rows._WARNED.clear()
        method = make()
        given = WORDS if name in ("simcse", "bert") else PARTS if name == "cpc" else VIEWS
        given = (VIEWS[0], WORDS[0]) if name in ("clip", "siglip") else given
        given = (VIEWS[0], torch.arange(4)) if name == "instdisc" else given
        given = (*VIEWS, torch.arange(4)) if name == "mean_teacher" else given
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                method(*given)
        said[name] = [str(w.message) for w in caught if "processes train together" in str(w.message)]
    return said


def work(rank: int, world: int, out: str) -> None:
    made = {f"shuffled {counts}": shuffled(rank, counts) for counts in ((6, 6), (7, 3))}
    for name in MADE:
        for how in HOW:
            made[f"{name} {how}"] = trained(rank, name, how)
    made["warned"] = warned(rank)
    torch.save(made, f"{out}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What ``work`` made in each of two processes."""
    if not distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    out = tmp_path_factory.mktemp("ranks")
    run_processes(work, 2, out, str(out), seconds=400)
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("counts", [(6, 6), (7, 3)])
def test_shuffling_across_processes(counts, ranks):
    """Each process has images of both before its teacher, every key is back at its image, and the queues are one."""
    one, other = (made[f"shuffled {counts}"] for made in ranks)
    owners = [made["owners"] for made in (one, other)]
    assert set(owners[0].tolist()) == set(owners[1].tolist()) == {0, 1}
    assert torch.cat(owners).bincount().tolist() == list(counts) and abs(len(owners[0]) - len(owners[1])) <= 1
    for made in (one, other):
        torch.testing.assert_close(made["keys"], made["plain"])
    assert torch.equal(one["queue"], other["queue"])
    assert torch.equal(one["queue"][:, : sum(counts)].T, torch.cat([one["keys"], other["keys"]]))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name, queue, pointer", [("moco", "queue.queue", "queue.queue_ptr"), ("nnclr", "queue", "queue_pointer")])
def test_queues_take_the_rows_of_all_processes(name, queue, pointer, how, ranks):
    start = made(name).state_dict()[queue]
    both = [made[f"{name} {how}"] for made in ranks]
    pushed = torch.cat([made[step]["rows"] for step in range(2) for made in both])
    for rank in (0, 1):
        state = both[rank][1]["state"]
        rows, before = (q.T if name == "moco" else q for q in (state[queue], start))
        torch.testing.assert_close(rows[:18], pushed, rtol=1e-5, atol=1e-6)
        assert torch.equal(rows[18:], before[18:]) and state[pointer].item() == 18
    assert torch.equal(both[0][1]["state"][queue], both[1][1]["state"][queue])
    assert len(pushed.unique(dim=0)) == 18


@pytest.mark.parametrize("how", HOW)
def test_banks_take_the_rows_of_all_processes(how, ranks):
    """A sample that two processes have in one step moves by the mean of both."""
    bank = made("instdisc").bank.double()
    both, index = [made[f"instdisc {how}"] for made in ranks], torch.tensor(INDEX[0] + INDEX[1])
    for step in range(2):
        rows = torch.cat([made[step]["rows"] for made in both]).double()
        for sample in index.unique().tolist():
            bank[sample] = F.normalize(0.25 * bank[sample] + 0.75 * rows[index == sample].mean(0), dim=0)
        for rank in (0, 1):
            torch.testing.assert_close(both[rank][step]["state"]["bank"].double(), bank, rtol=1e-5, atol=1e-6)
    assert torch.equal(both[0][1]["state"]["bank"], both[1][1]["state"]["bank"])


@pytest.mark.parametrize("name", MADE)
def test_a_checkpointed_method_is_the_method_in_each_process(name, ranks):
    """The second run sees queue and bank without the rows of any process. Batch norms move their statistics twice, as always."""
    for made in ranks:
        for plain, again in zip(made[f"{name} plain"], made[f"{name} checkpointed"], strict=True):
            for step in (plain, again):
                step["state"] = {k: v for k, v in step["state"].items() if "running" not in k and "num_batches" not in k}
            torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


def test_methods_that_contrast_local_rows_say_so_once_and_no_others(ranks):
    for made in ranks:
        assert {name: len(said) for name, said in made["warned"].items()} == {name: int(name in LOCAL) for name in EVERY}
