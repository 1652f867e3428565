"""DINO's loss with the arguments and state of the DINO repository's class (Caron et al. 2021), for one process."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class DINOLoss(nn.Module):
    def __init__(
        self,
        out_dim,
        ncrops,
        warmup_teacher_temp,
        teacher_temp,
        warmup_teacher_temp_epochs,
        nepochs,
        student_temp=0.1,
        center_momentum=0.9,
    ):
        super().__init__()
        self.student_temp, self.center_momentum, self.ncrops = student_temp, center_momentum, ncrops
        self.register_buffer("center", torch.zeros(1, out_dim))
        self.teacher_temp_schedule = np.full(nepochs, teacher_temp)
        self.teacher_temp_schedule[:warmup_teacher_temp_epochs] = np.linspace(
            warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs
        )

    def forward(self, student_output, teacher_output, epoch):
        predictions = [F.log_softmax(crop / self.student_temp, dim=1) for crop in student_output.chunk(self.ncrops)]
        temperature = self.teacher_temp_schedule[epoch]
        targets = [F.softmax((crop - self.center) / temperature, dim=1) for crop in teacher_output.chunk(2)]
        pairs = [(q, p) for t, q in enumerate(targets) for s, p in enumerate(predictions) if s != t]
        self.update_center(teacher_output)
        return sum((-q * p).sum(1).mean() for q, p in pairs) / len(pairs)

    @torch.no_grad()
    def update_center(self, teacher_output):
        mean = teacher_output.mean(dim=0, keepdim=True)
        self.center = self.center_momentum * self.center + (1 - self.center_momentum) * mean
