"""The methods without negatives in three processes with four, three and two samples: losses, gradients and states of one process
with the joined batch."""

import pytest
import torch
from torch import Tensor, distributed, nn

from fastssl.functional import multi_block_mask
from fastssl.methods import IJEPA, BarlowTwins, DeepCluster, LeJEPA, VICReg, VisionTransformer
from fastssl.train.processes import share_of_rows
from tests.distributed import test_crop_methods_ranks as crops
from tests.support.formulas import tiny
from tests.support.processes import run_processes

PARTS = (slice(0, 4), slice(4, 7), slice(7, 9))
BLOCKS = multi_block_mask(9, (6, 6), seed=1, num_targets=2)


def clustered() -> DeepCluster:
    method = DeepCluster(tiny(), 12, num_clusters=3)
    method.take_round(torch.arange(12) % 3, seed=2)
    return method


MADE = {
    "barlow_twins": lambda: BarlowTwins(tiny(), projection_dim=7),  # D x D matrices
    "barlow_twins by N x N": lambda: BarlowTwins(tiny(), projection_dim=16),
    "vicreg": lambda: VICReg(tiny(), projection_dim=7),
    "vicreg by N x N": lambda: VICReg(tiny(), projection_dim=16),
    "lejepa": lambda: LeJEPA(tiny(), projection_dim=6, slices=8),
    "deepcluster": clustered,
    "ijepa": lambda: IJEPA(VisionTransformer(12, 2, 8, 1, 2), predictor_dim=8, predictor_depth=1, predictor_heads=2, momentum=0.7),
}


def given(method: nn.Module, step: int, rows: slice) -> tuple[tuple[Tensor, ...], dict]:
    """The arguments of a step, for some of nine samples."""
    torch.manual_seed(20 + step)
    views = torch.rand(3, 9, 3, 4, 4, dtype=torch.float64)[:, rows].unbind()
    if isinstance(method, IJEPA):
        return (torch.rand(9, 3, 12, 12, dtype=torch.float64)[rows],), {"blocks": type(BLOCKS)(*(ids[rows] for ids in BLOCKS))}
    if isinstance(method, DeepCluster):
        return (views[0], torch.arange(2, 11)[rows]), {}
    return (views if isinstance(method, LeJEPA) else views[:2]), {}


def trained(name: str, rows: slice) -> dict[str, Tensor]:
    """Losses and gradients of three steps, and the state after them. ``fastssl train`` weighs losses of own rows alone, too."""
    torch.manual_seed(0)
    method, seen = MADE[name]().double(), {}
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    several = distributed.is_initialized()
    outer = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False) if several else method
    for step in range(3):
        arguments, more = given(method, step, rows)
        loss = outer(*arguments, **more)
        if several and isinstance(method, DeepCluster | IJEPA):
            loss = loss * share_of_rows(rows.stop - rows.start, loss.device)
        loss.backward()
        seen[f"loss {step}"] = loss.detach()
        with torch.no_grad():
            for key, p in method.named_parameters():
                if p.grad is not None:
                    seen[f"gradient {step} {key}"] = p.grad
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
    return seen | {key: value.clone() for key, value in method.state_dict().items()}


def work(rank: int, world: int, out: str) -> None:
    made = {name: trained(name, PARTS[rank]) for name in MADE}
    torch.save(made | {name: crops.trained(name, PARTS[rank]) for name in crops.MADE}, f"{out}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    if not distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    out = tmp_path_factory.mktemp("ranks")
    run_processes(work, 3, out, str(out), seconds=400)
    return [torch.load(out / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("name", [*MADE, *crops.MADE])
def test_three_processes_train_as_one_with_the_joined_batch(name, ranks):
    one = trained(name, slice(0, 9)) if name in MADE else crops.trained(name, crops.WHOLE)
    crops.assert_as_one(one, [made[name] for made in ranks])
