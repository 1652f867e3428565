"""InfoNCE of queries among the keys of all processes, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.nn.functional import all_gather


def info_nce(query, key, temperature, group=None):
    """query, key (B, D) of this process -> the mean over its queries, each among the keys of all processes in ``group``."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    target = torch.arange(len(query), device=query.device)
    if group is not None:
        target, key = target + distributed.get_rank(group) * len(key), torch.cat(all_gather(key, group))
    return F.cross_entropy(query @ key.T / temperature, target)
