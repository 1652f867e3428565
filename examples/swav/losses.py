"""SwAV's codes and loss with the names and settings of its training script (Caron et al. 2020), for one process."""

from argparse import Namespace

import numpy as np
import torch
import torch.nn.functional as F

#: What the parser of the script gives; ``distributed_sinkhorn`` reads it, as there.
args = Namespace(epsilon=0.05, sinkhorn_iterations=3, temperature=0.1, crops_for_assign=[0, 1])


@torch.no_grad()
def distributed_sinkhorn(out):
    """Codes (B, K) of logits (B, K): prototypes get equal shares, then images do, and again."""
    codes = torch.exp(out / args.epsilon)
    for _ in range(args.sinkhorn_iterations):
        codes = codes / codes.sum(dim=0)
        codes = codes / codes.sum(dim=1, keepdim=True)
    return codes


def swapped_prediction(output, nmb_crops, queue_output):
    """Each crop of ``crops_for_assign`` gets codes, which every other crop predicts; rows (crops B, K), crop after crop."""
    crops, loss = output.chunk(sum(nmb_crops)), 0.0
    for i, crop_id in enumerate(args.crops_for_assign):
        with torch.no_grad():
            out = crops[crop_id].detach()
            if queue_output is not None:
                out = torch.cat((queue_output[i], out))
            q = distributed_sinkhorn(out)[-len(crops[crop_id]) :]
        others = np.delete(np.arange(len(crops)), crop_id)
        subloss = sum(-(q * F.log_softmax(crops[v] / args.temperature, dim=1)).sum(1).mean() for v in others)
        loss = loss + subloss / len(others)
    return loss / len(args.crops_for_assign)
