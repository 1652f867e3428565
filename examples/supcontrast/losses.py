"""The supervised contrastive loss with the arguments of the SupContrast repository, written out in plain PyTorch.

For an anchor i with positives P(i), rows of its label other than itself (Khosla et al. 2020, eq. 2):

    loss_i = - T / T_base * mean over p in P(i) of (s_ip - log sum over j != i of exp s_ij),     s_ij = <z_i, z_j> / T
"""

import torch
from torch import nn


class SupConLoss(nn.Module):
    def __init__(self, temperature=0.07, contrast_mode="all", base_temperature=0.07):
        super().__init__()
        self.temperature, self.contrast_mode, self.base_temperature = temperature, contrast_mode, base_temperature

    def forward(self, features, labels=None, mask=None):
        """features (B, views, D) of unit length; labels (B,), or a mask (B, B), or neither: then views are the positives."""
        batch, views = features.shape[:2]
        if mask is None:
            labels = torch.arange(batch, device=features.device) if labels is None else labels
            mask = labels.view(-1, 1) == labels.view(1, -1)
        rows = torch.cat(features.unbind(1))
        anchors = rows if self.contrast_mode == "all" else features[:, 0]
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)[: len(anchors)]
        positives = mask.repeat(len(anchors) // batch, views).to(rows.dtype) * ~itself
        logits = (anchors @ rows.T / self.temperature).masked_fill(itself, -torch.inf)
        log_shares = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0)
        mean = (positives * log_shares).sum(1) / positives.sum(1)
        return -(self.temperature / self.base_temperature) * mean.mean()
