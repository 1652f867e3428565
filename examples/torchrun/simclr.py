"""SimCLR in plain PyTorch on several processes, with the negatives of all of them, in DistributedDataParallel or FSDP2.

torchrun --nproc-per-node 2 -m examples.torchrun.simclr [--wrap fsdp2] [--accumulate 2] [--fastssl]
python -m examples.torchrun.simclr --compare
"""

import contextlib
from functools import partial

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, 1024, 5, 2, wrap=("ddp", "fsdp2"), accumulate=(1, 2), transport=("gather", "ring"))
if args.fastssl:
    from fastssl.distributed import Ranks
    from fastssl.functional import nt_xent

    nt_xent = partial(nt_xent, group=Ranks(transport=args.transport))  # the lines for fastssl: the import and group=
else:
    from examples.torchrun.losses import nt_xent

distributed.init_process_group("nccl" if args.device == "cuda" else "gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
if args.device == "cuda":
    torch.cuda.set_device(rank % torch.cuda.device_count())

model = nn.Sequential(small_backbone(128), nn.ReLU(), nn.Linear(128, 128)).to(args.device)
if args.wrap == "ddp":
    model = DistributedDataParallel(model)
else:
    fully_shard(model, mesh=distributed.init_device_mesh(args.device, (world,)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = two_views(args.steps * args.accumulate * args.batch)
loader = DataLoader(dataset, args.batch // world, sampler=DistributedSampler(dataset), drop_last=True)


def without_sync(last):
    """Gradients are exchanged in the backward of the last part of a step alone."""
    if args.wrap == "ddp":
        return contextlib.nullcontext() if last else model.no_sync()
    model.set_requires_gradient_sync(last)
    return contextlib.nullcontext()


with Run(args) as run:
    total = torch.zeros((), device=args.device)
    for part, (view0, view1, _) in enumerate(loader, start=1):
        last = part % args.accumulate == 0
        with without_sync(last):
            z0, z1 = model(torch.cat([view0, view1]).to(args.device)).chunk(2)
            loss = nt_xent(z0, z1, temperature=0.1) / args.accumulate
            loss.backward()
        total += loss.detach() / world
        if last:
            optimizer.step()
            optimizer.zero_grad()
            distributed.all_reduce(total)
            run.step(total)
            total.zero_()
distributed.destroy_process_group()
