"""DINO, iBOT and SwAV in two processes with six and three samples: losses, gradients, centres and queues of one process with the
joined batch."""

import pytest
import torch
from torch import Tensor, distributed, nn

from fastssl.methods import DINO, IBOT, SwAV
from tests.methods.test_crop_methods import SMALL, Maps, transformer
from tests.support.processes import run_processes

PARTS, WHOLE = (slice(0, 6), slice(6, 9)), slice(0, 9)
WHERE = (([0, 3, 7, 10], [0, 3, 10, 13]), ([2, 4], [8, 16]))  # masked crops of each part: their places there, and among all
IDS = torch.arange(18).view(6, 3) % 16
MADE = {
    "dino": lambda: DINO(Maps(), total_steps=9, **SMALL),
    "dino sinkhorn": lambda: DINO(Maps(), centering="sinkhorn", **SMALL),
    "ibot": lambda: IBOT(transformer(), centering="center", separate_heads=True, koleo_weight=0.5, **SMALL),
    "ibot sinkhorn": lambda: IBOT(Maps(), image_size=8, **SMALL),
    "swav": lambda: SwAV(Maps(), prototypes=7, projection_dim=5),
    "swav with a queue": lambda: SwAV(Maps(), prototypes=7, projection_dim=5, queue_size=20),
}


def blocks(rows: slice) -> tuple[Tensor, Tensor]:
    """Which crops of a part are masked and where: those that are masked in the joined batch."""
    if rows == WHOLE:
        return torch.tensor([place for _, places in WHERE for place in places]), IDS
    part = PARTS.index(rows)
    return torch.tensor(WHERE[part][0]), IDS[:4] if part == 0 else IDS[4:]


def trained(name: str, rows: slice) -> dict[str, Tensor]:
    """Losses of four steps, and the parameters and buffers after them, by DDP where there are several processes."""
    torch.manual_seed(0)
    method = MADE[name]().double()
    large, local = torch.rand(2, 9, 3, 8, 8, dtype=torch.float64), torch.rand(3, 9, 3, 4, 4, dtype=torch.float64)
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module
    several = distributed.is_initialized()
    outer = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False) if several else method
    seen: dict[str, Tensor] = {}
    more = {"blocks": blocks(rows)} if name.startswith("ibot") else {}
    for step in range(4):
        loss = outer(list((large + 0.1 * step)[:, rows]), list(local[:, rows]), **more)
        loss.backward()
        seen[f"loss {step}"] = loss.detach()
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
    return seen | {key: value.clone() for key, value in method.state_dict().items()}


def work(rank: int, world: int, out: str) -> None:
    torch.save({name: trained(name, PARTS[rank]) for name in MADE}, f"{out}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    if not distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    out = tmp_path_factory.mktemp("ranks")
    run_processes(work, 2, out, str(out), seconds=400)
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", MADE)
def test_two_processes_train_as_one_with_the_joined_batch(name, ranks):
    one, (first, second) = trained(name, WHOLE), (made[name] for made in ranks)
    assert one.keys() == first.keys()
    for key, value in one.items():
        ours, theirs = first[key], second[key]
        if key.startswith("loss"):
            ours = theirs = (ours + theirs) / 2
        assert torch.equal(ours, theirs), key
        torch.testing.assert_close(ours, value, rtol=1e-6, atol=1e-9, msg=lambda said, key=key: f"{key}: {said}")
