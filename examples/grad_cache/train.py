"""Queries and passages by GradCache (Gao et al. 2021), on one process or several: the batch of the loss is larger than what the
encoder sees at once.

All rows are encoded in parts without a graph; the loss of all of them gives the gradient of each row; then each part is encoded
again, now with a graph, and its gradients go through it. The package grad_cache does the same as ``cache_step``, and its loss slot
takes the same losses.

python -m examples.grad_cache.train [--fastssl | --compare]
torchrun --nproc-per-node 2 -m examples.grad_cache.train [--fastssl]
"""

import contextlib
import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=2048, chunk_size=(256, 4))
several = "WORLD_SIZE" in os.environ
if several:
    distributed.init_process_group("nccl" if args.device == "cuda" else "gloo")
if args.fastssl:
    from fastssl.functional import info_nce
else:
    from examples.grad_cache.losses import info_nce


def cache_step(model, inputs, loss_fn):
    """Adds the gradients of ``loss_fn(x, y)`` for a pair of inputs, in parts of ``args.chunk_size`` rows; returns the loss."""
    parts = [part for each in inputs for part in each.split(args.chunk_size)]
    with torch.no_grad():
        rows = torch.cat([model(part) for part in parts])
    x, y = (each.detach().requires_grad_() for each in rows.chunk(2))
    loss = loss_fn(x, y)
    loss.backward()
    gradients = torch.cat([x.grad, y.grad]).split([len(part) for part in parts])
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True), start=1):
        last = number == len(parts)
        with model.no_sync() if several and not last else contextlib.nullcontext():
            model(part).backward(gradient)
    return loss.detach()


rank, world = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
model = small_backbone(128).to(args.device).eval()  # statistics of a part of the batch would not be those of the batch
if several:
    model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(two_views(args.steps * args.batch), args.batch, shuffle=True, drop_last=True)
group = distributed.group.WORLD if several else None

with Run(args) as run:
    for query, passage, _ in loader:
        own = [each.chunk(world)[rank].to(args.device) for each in (query, passage)]
        loss = cache_step(model, own, lambda x, y: info_nce(x, y, temperature=0.05, group=group))
        optimizer.step()
        optimizer.zero_grad()
        if several:
            distributed.all_reduce(loss)
        run.step(loss / world)
if several:
    distributed.destroy_process_group()
