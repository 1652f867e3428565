"""DINO and SwAV with lightly: global and local crops in lists, and DINOLoss or SwaVLoss.

python -m examples.lightly.multi_crop [--loss SwaVLoss] [--fastssl | --compare]
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits, small_backbone

args = arguments(__doc__, batch=32, loss=("DINOLoss", "SwaVLoss"), prototypes=(512, 64), local_crops=(6, 2))
if args.fastssl:
    fastssl.patch("lightly")  # the one line; it stands before the imports from lightly

from lightly.loss import DINOLoss, SwaVLoss
from lightly.models.modules import DINOProjectionHead, SwaVProjectionHead, SwaVPrototypes
from lightly.models.utils import deactivate_requires_grad, update_momentum


class DINO(nn.Module):
    def __init__(self):
        super().__init__()
        backbone = small_backbone(128)
        self.teacher = nn.Sequential(copy.deepcopy(backbone), DINOProjectionHead(128, 128, 64, args.prototypes))
        self.student = nn.Sequential(backbone, DINOProjectionHead(128, 128, 64, args.prototypes))
        deactivate_requires_grad(self.teacher)
        self.criterion = DINOLoss(output_dim=args.prototypes, warmup_teacher_temp_epochs=5)

    def forward(self, high, low):
        update_momentum(self.student, self.teacher, m=0.99)
        with torch.no_grad():
            teacher_out = [self.teacher(crop) for crop in high]
        return self.criterion(teacher_out, [self.student(crop) for crop in high + low], epoch=0)


class SwaV(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(small_backbone(128), SwaVProjectionHead(128, 128, 64))
        self.prototypes = SwaVPrototypes(64, n_prototypes=args.prototypes)
        self.criterion = SwaVLoss()

    def forward(self, high, low):
        self.prototypes.normalize()
        outputs = [self.prototypes(F.normalize(self.backbone(crop), dim=1)) for crop in high + low]
        return self.criterion(outputs[:2], outputs[2:])


model = {"DINOLoss": DINO, "SwaVLoss": SwaV}[args.loss]().to(args.device, args.dtype)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
images, _ = digits(args.steps * args.batch)

with Run(args) as run:
    for batch in images.split(args.batch):
        high = [augment(batch).to(args.device) for _ in range(2)]
        low = [F.interpolate(augment(batch)[:, :, 8:24, 8:24], 32).to(args.device) for _ in range(args.local_crops)]
        loss = model(high, low)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss)
