"""Methods in two processes: the gradients of one process with the joined batch, shuffled keys, queues and banks that are the same
in both, with and without DDP."""

import warnings
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from fastssl.loss.parts import local_rows
from fastssl.methods import (
    BERT,
    BYOL,
    CLIP,
    CMC,
    COLA,
    CPC,
    NNCLR,
    BarlowTwins,
    DeepCluster,
    InstDisc,
    LeJEPA,
    MeanTeacher,
    MoCo,
    MoCoV3,
    MultiFormat,
    SigLIP,
    SimCLR,
    SimCSE,
    SimSiam,
    SupCon,
    VICReg,
)
from fastssl.train.processes import share_of_rows
from tests.methods.test_odd_arguments import Text
from tests.support.formulas import tiny
from tests.support.processes import run_processes
from tests.support.training import needs_train

SIZES = (6, 3)  # images a batch in each process
HOW = ("plain", "ddp", "checkpointed")
INDEX = ([0, 3, 5, 7, 8, 9], [3, 1, 9])  # samples 3 and 9 are in the batches of both
MADE = {
    "moco": lambda: MoCo(tiny(), 10, queue_size=32, projection_dim=6),
    "nnclr": lambda: NNCLR(tiny(), 10, queue_size=32, projection_dim=6),
    "instdisc": lambda: InstDisc(tiny(), 10, 10, projection_dim=6, momentum=0.25),
}


CHOOSE = {  # those with an argument negatives
    "simclr": lambda **how: SimCLR(tiny(), **how),
    "supcon": lambda **how: SupCon(tiny(), **how),
    "nnclr": lambda **how: NNCLR(tiny(), 10, queue_size=32, projection_dim=6, **how),
    "moco_v3": lambda **how: MoCoV3(tiny(), **how),
    "cmc": lambda **how: CMC([tiny(), tiny()], **how),
    "cpc": lambda **how: CPC(tiny(), **how),
    "cola": lambda **how: COLA(tiny(), projection_dim=6, **how),
    "multi_format": lambda **how: MultiFormat(tiny(), tiny(), **how),
    "clip": lambda **how: CLIP(tiny(), Text(), **how),
    "siglip": lambda **how: SigLIP(tiny(), Text(), **how),
    "simcse": lambda **how: SimCSE(Text(), hidden_dim=8, **how),
}
STATISTICS = {  # those with an argument statistics
    "barlow_twins": lambda **how: BarlowTwins(tiny(), projection_dim=16, **how),
    "vicreg": lambda **how: VICReg(tiny(), projection_dim=16, **how),
    "lejepa": lambda **how: LeJEPA(tiny(), projection_dim=6, slices=8, **how),
}
EVERY = (
    CHOOSE
    | STATISTICS
    | {
        "moco": MADE["moco"],
        "instdisc": MADE["instdisc"],
        "byol": lambda: BYOL(tiny()),
        "simsiam": lambda: SimSiam(tiny(), projection_dim=8),
        "mean_teacher": lambda: MeanTeacher(tiny(), 4),
        "bert": lambda: BERT(30, mask_id=29, width=8, depth=1, heads=2),
    }
)
VIEWS, PARTS = tuple(torch.rand(2, 4, 3, 4, 4)), (torch.rand(3, 5, 3, 4, 4),)
WORDS = torch.arange(20).view(4, 5), torch.ones(4, 5)
JOINED = (*CHOOSE, *STATISTICS, "moco", "byol", "simsiam")  # the last three see no rows of the other process
LABELS = torch.tensor([0, 1, 0, 2, 1, 3, 0, 2, 4])  # of samples of both processes, 6 and 3


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


def joined_batch(name: str, rows: slice) -> tuple[Tensor, ...]:
    """The arguments of a method, float64: some of nine samples."""
    torch.manual_seed(20)
    views = torch.rand(2, 9, 3, 4, 4, dtype=torch.float64)
    words, sequences = torch.randint(20, (9, 5)), torch.rand(9, 5, 3, 4, 4, dtype=torch.float64)
    batch = {
        "cpc": (sequences,),
        "simcse": (words, torch.ones(9, 5), LABELS),
        "clip": (views[0], words, LABELS),
        "siglip": (views[0], words, LABELS),
        "supcon": (*views, LABELS),
    }.get(name, tuple(views))
    return tuple(part[rows] for part in batch)


def gradients(name: str, rows: slice) -> dict[str, Tensor]:
    """Loss and gradients of a method whose batch norms leave the rows as they are, by DDP where there are several processes."""
    torch.manual_seed(0)
    method = EVERY[name]().double().train()
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    several = distributed.is_initialized()
    outer = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False) if several else method
    loss = outer(*joined_batch(name, rows))
    if several and name not in CHOOSE | STATISTICS:
        loss = loss * share_of_rows(rows.stop - rows.start, loss.device)
    loss.backward()
    return {"loss": loss.detach()} | {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


def warned(rank: int, makers: dict, **how: str) -> dict[str, list[str]]:
    """What two forwards of each method say about several processes."""
    said = {}
    for name, make in makers.items():
        local_rows._WARNED.clear()
        method = make(**how)
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


def shared_round(rank: int) -> dict[str, Tensor]:
    """DeepCluster's state after a round of ``fastssl train``, for which each process has other features."""
    from fastssl.train.recipes import deepcluster

    torch.manual_seed(rank)
    method = DeepCluster(tiny(), 12, num_clusters=3)
    deepcluster.features_and_index = lambda module: (torch.randn(12, 10), torch.arange(12))
    deepcluster.share_round(method, None, distributed.new_group(), 3)
    return {key: value for key, value in method.state_dict().items() if "backbone" not in key}


def work(rank: int, world: int, out: str) -> None:
    made = {f"shuffled {counts}": shuffled(rank, counts) for counts in ((6, 6), (7, 3))}
    for name in MADE:
        for how in HOW:
            made[f"{name} {how}"] = trained(rank, name, how)
    made["warned"], made["warned of local"] = warned(rank, EVERY), warned(rank, CHOOSE, negatives="local")
    made["warned of local"] |= warned(rank, STATISTICS, statistics="local")
    if find_spec("sklearn"):
        made["shared round"] = shared_round(rank)
    made["joined"] = {name: gradients(name, slice(0, 6) if rank == 0 else slice(6, 9)) for name in JOINED}
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


@pytest.mark.parametrize("name", JOINED)
def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(name, ranks):
    """Six rows in one process and three in the other, as where a file cannot be read. Labels are compared across processes."""
    one, (first, second) = gradients(name, slice(0, 9)), (made["joined"][name] for made in ranks)
    assert one.keys() == first.keys() and len(one) > 1
    torch.testing.assert_close((first.pop("loss") + second.pop("loss")) / 2, one.pop("loss"), rtol=1e-12, atol=0)
    largest = max(grad.abs().max() for grad in one.values())
    for key, grad in one.items():
        torch.testing.assert_close(first[key], grad, rtol=0, atol=1e-12 * float(largest))
        assert torch.equal(first[key], second[key])


@needs_train
def test_processes_share_the_clusters_of_the_first_one(ranks):
    first, second = (made["shared round"] for made in ranks)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert first["round"] == 1 and first["labels"].unique().tolist() == [0, 1, 2] and first["classifier.weight"].std() < 0.1


def test_only_local_negatives_are_warned_of(ranks):
    """By default no method says anything; a method with local negatives or statistics says so once."""
    for made in ranks:
        assert not any(made["warned"].values())
        assert {name: len(said) for name, said in made["warned of local"].items()} == dict.fromkeys(CHOOSE | STATISTICS, 1)
