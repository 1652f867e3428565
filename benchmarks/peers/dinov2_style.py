"""The operations of DINO's and DINOv2's repositories, in their order, written from what they compute.

Balanced targets: exponentials of the transposed logits, their sum, and in each of three iterations a division by the sums of the
rows and by K, and one by the sums of the columns and by B. Crops: for each pair of a teacher crop and a student crop a product
with the log-softmax of the student crop; DINO takes that log-softmax anew for each pair, DINOv2 once for each student crop, which
is what is done here.
"""

import torch
import torch.nn.functional as F

from fastssl.testing.distilled_updates import ITERATIONS, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE

from . import Peer, distilled


@torch.no_grad()
def assignments(teacher):
    q = torch.exp(teacher.float() / TEACHER_TEMPERATURE).t()
    prototypes, samples = q.shape
    q /= torch.sum(q)
    for _ in range(ITERATIONS):
        q /= torch.sum(q, dim=1, keepdim=True)
        q /= prototypes
        q /= torch.sum(q, dim=0, keepdim=True)
        q /= samples
    q *= samples
    return q.t()


def _rows(given, targets):
    loss = torch.sum(targets * F.log_softmax(given["student"].float() / STUDENT_TEMPERATURE, dim=-1), dim=-1)
    return {"loss": -loss.sum() / len(loss)}


def _crops(given):
    teacher = F.softmax((given["teacher"] - given["center"]) / TEACHER_TEMPERATURE, dim=-1)
    total, terms = 0.0, 0
    for s, crop in enumerate(given["student"]):
        log_p = F.log_softmax(crop.float() / STUDENT_TEMPERATURE, dim=-1)
        for t, target in enumerate(teacher):
            if s != t:
                total, terms = total - torch.sum(target * log_p, dim=-1).mean(), terms + 1
    return {"loss": total / terms}


FORMS = {
    "soft_targets_sinkhorn": lambda given: _rows(given, assignments(given["teacher"])),
    "soft_targets_crops": _crops,
    "soft_targets_given": lambda given: _rows(given, given["teacher"]),
}
PEER = Peer("dinov2_style", distilled(FORMS))
