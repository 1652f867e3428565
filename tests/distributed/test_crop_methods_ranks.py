"""DINO, iBOT and SwAV in two processes with six and three samples: losses, gradients, centres and queues of one process with the
joined batch."""

import pytest
import torch
from torch import Tensor, distributed, nn

from fastssl.methods import DINO, IBOT, SwAV
from tests.methods.test_crop_methods import SMALL, Maps, transformer
from tests.support.processes import run_processes

PARTS, WHOLE = (slice(0, 6), slice(6, 9)), slice(0, 9)
MASKED = ((0, 0), (0, 3), (1, 1), (1, 4), (0, 8), (1, 7))  # large crops that are masked: which crop of which image
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
    own = [at for at, (_, image) in enumerate(MASKED) if rows.start <= image < rows.stop]
    places = [MASKED[at][0] * (rows.stop - rows.start) + MASKED[at][1] - rows.start for at in own]
    return torch.tensor(places), IDS[own]


def trained(name: str, rows: slice) -> dict[str, Tensor]:
    """Losses and gradients of four steps, and the parameters and buffers after them, by DDP where there are several processes."""
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
            for key, p in method.named_parameters():
                if p.grad is not None:
                    seen[f"gradient {step} {key}"] = p.grad
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
    return seen | {key: value.clone() for key, value in method.state_dict().items()}


def assert_as_one(one: dict[str, Tensor], several: list[dict[str, Tensor]]) -> None:
    """Each process has the gradients and the state of one with the joined batch, and the mean of the losses is its loss."""
    for key, value in one.items():
        first, *others = (made[key] for made in several)
        if key.startswith("loss"):
            first, others = torch.stack([first, *others]).mean(0), []
        assert all(torch.equal(first, other) for other in others), key
        torch.testing.assert_close(first, value, rtol=1e-6, atol=1e-9, msg=lambda said, key=key: f"{key}: {said}")
    assert all(made.keys() == one.keys() for made in several) and sum(key.startswith("gradient") for key in one) > 7


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
    assert_as_one(trained(name, WHOLE), [made[name] for made in ranks])
