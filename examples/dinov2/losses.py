"""The losses of DINOv2 with the arguments and state of its package ``dinov2.loss`` (Oquab et al. 2024), for one process."""

import torch
import torch.nn.functional as F
from torch import nn


def balanced(logits, temperature, n_iterations):
    """Sinkhorn's assignment (N, K): prototypes get equal shares, then rows do, and again."""
    plan = torch.exp(logits / temperature)
    for _ in range(n_iterations):
        plan = plan / plan.sum(dim=0)
        plan = plan / plan.sum(dim=1, keepdim=True)
    return plan


class Centred(nn.Module):
    """A centre whose new value waits for the next call of ``softmax_center_teacher``."""

    def __init__(self, center, student_temp, center_momentum):
        super().__init__()
        self.student_temp, self.center_momentum, self.waiting = student_temp, center_momentum, None
        self.register_buffer("center", center)

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_output, teacher_temp):
        if self.waiting is not None:
            self.center = self.center_momentum * self.center + (1 - self.center_momentum) * self.waiting
            self.waiting = None
        return F.softmax((teacher_output - self.center) / teacher_temp, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_output):
        self.waiting = teacher_output.flatten(0, -2).mean(dim=0)


class DINOLoss(Centred):
    def __init__(self, out_dim, student_temp=0.1, center_momentum=0.9):
        super().__init__(torch.zeros(1, out_dim), student_temp, center_momentum)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(self, teacher_output, teacher_temp, n_iterations=3):
        return balanced(teacher_output, teacher_temp, n_iterations)

    def forward(self, student_output_list, teacher_out_softmaxed_centered_list):
        predictions = [F.log_softmax(crop / self.student_temp, dim=-1) for crop in student_output_list]
        return sum(-(t * p).sum(-1).mean() for p in predictions for t in teacher_out_softmaxed_centered_list)


class iBOTPatchLoss(Centred):
    def __init__(self, patch_out_dim, student_temp=0.1, center_momentum=0.9):
        super().__init__(torch.zeros(1, 1, patch_out_dim), student_temp, center_momentum)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(self, teacher_output, teacher_temp, n_masked_patches_tensor, n_iterations=3):
        return balanced(teacher_output, teacher_temp, n_iterations)  # the number of patches cancels

    def forward_masked(
        self,
        student_patch_tokens_masked,
        teacher_patch_tokens_masked,
        student_masks_flat,
        n_masked_patches=None,
        masks_weight=None,
    ):
        predictions = F.log_softmax(student_patch_tokens_masked / self.student_temp, dim=-1)
        losses = -(teacher_patch_tokens_masked * predictions).sum(-1)[:n_masked_patches]
        if masks_weight is None:
            masks_weight = (1 / student_masks_flat.sum(-1).clamp(min=1))[student_masks_flat.nonzero()[:, 0]]
        return (losses * masks_weight).sum() / len(student_masks_flat)


class KoLeoLoss(nn.Module):
    def forward(self, student_output, eps=1e-8):
        unit = F.normalize(student_output, dim=-1, eps=eps)
        with torch.no_grad():
            nearest = (unit @ unit.t()).fill_diagonal_(-1.0).argmax(dim=1)
        return -torch.log(F.pairwise_distance(unit, unit[nearest], eps=1e-8) + eps).mean()
