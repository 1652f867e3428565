"""NT-Xent with the negatives of all processes, as it is often written in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.nn.functional import all_gather


def nt_xent(z0, z1, temperature):
    """z0, z1 (B, D) of this process -> the mean over its 2 B rows, each against the rows of all processes but itself."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    rows = torch.arange(len(z), device=z.device)
    first = distributed.get_rank() * len(z)
    logits = z @ torch.cat(all_gather(z)).T / temperature
    logits[rows, first + rows] = -torch.inf
    return F.cross_entropy(logits, first + rows.roll(len(z0)))
