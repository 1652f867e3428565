"""The average of a model in shards, two processes."""

import copy
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastssl.momentum import EMA
from tests.support.momentum_models import same, small
from tests.support.processes import run_processes


def sharded_against_whole(rank: int, world: int) -> None:
    """Both ranks train one model in shards; its EMA must be that of the whole model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))

    def shard(module, make):
        if make == "fully_shard":
            fully_shard(module[0], mesh=mesh)
            return fully_shard(module, mesh=mesh)
        for m in module.modules():
            for name, p in list(m.named_parameters(recurse=False)):
                m.register_parameter(
                    name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)]), requires_grad=p.requires_grad)
                )
        return module

    for make, dtype in product(("fully_shard", "distribute_tensor"), (None, torch.bfloat16)):
        torch.manual_seed(0)
        model = small()
        whole, emas = copy.deepcopy(model), [EMA(model, 0.9, dtype=dtype) for _ in range(2)]
        model = shard(model, make)
        shard(emas[0].module, make)
        for _ in range(3):
            if make == "fully_shard":
                model(torch.randn(8, 4)).square().sum().backward()
                emas[0](torch.randn(8, 4).to(dtype or torch.float32))
            with torch.no_grad():
                for p, w in zip(model.parameters(), whole.parameters(), strict=True):
                    w.add_(torch.randn_like(w))
                    p.copy_(distribute_tensor(w.detach(), mesh, [Shard(0)]))
            emas[0].update(model)
            emas[1].update(whole)
        got = [p.full_tensor() for p in emas[0].module.parameters()]
        assert same(got, list(emas[1].module.parameters()))
        masters = [t.full_tensor() for t in emas[0].master.buffers()]
        assert same(masters, list(emas[1].master.buffers())) and len(masters) == (6 if dtype else 0)


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
def test_shards_are_averaged_as_the_whole(tmp_path):
    run_processes(sharded_against_whole, 2, tmp_path)
