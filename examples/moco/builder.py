"""A MoCo class with the methods and state of the MoCo repository's (He et al. 2020), for one process, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn


class MoCo(nn.Module):
    def __init__(self, base_encoder, dim=128, K=65536, m=0.999, T=0.07):
        super().__init__()
        self.K, self.m, self.T = K, m, T
        self.encoder_q, self.encoder_k = base_encoder(num_classes=dim), base_encoder(num_classes=dim)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update_key_encoder(self):
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = self.m * k.data + (1 - self.m) * q.data

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys):
        start = int(self.queue_ptr)
        assert self.K % len(keys) == 0, "the batch must divide the queue"
        self.queue[:, start : start + len(keys)] = keys.T
        self.queue_ptr[0] = (start + len(keys)) % self.K

    def forward(self, im_q, im_k):
        """Logits (N, 1 + K), the positive first, and labels (N,), all 0."""
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            k = F.normalize(self.encoder_k(im_k), dim=1)
        positive, negative = (q * k).sum(1, keepdim=True), q @ self.queue.clone()
        logits = torch.cat([positive, negative], dim=1) / self.T
        self._dequeue_and_enqueue(k)
        return logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)
