"""DINO in the manner of its repository: multi-crop, a teacher that follows the student, a centre, schedules.

python -m examples.dino.main_dino [--fastssl | --compare]                 loss and teacher update are exchanged
python -m examples.dino.main_dino --swap patch [--fastssl | --compare]    only the loss is exchanged
"""

import torch
import torch.nn.functional as F
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits, small_backbone
from examples.dino.losses import DINOLoss
from fastssl.compat.dino import cosine_scheduler

args = arguments(__doc__, batch=32, swap=("class", "patch"), out_dim=(16384, 256), local_crops=(6, 2))
if args.fastssl and args.swap == "class":
    from fastssl.compat.dino import DINOLoss, update_teacher  # the first line of two
elif args.fastssl:
    fastssl.patch("dino", DINOLoss)


class Net(nn.Module):
    """Crops of two sizes, one size after the other, then a head with prototypes of unit length."""

    def __init__(self):
        super().__init__()
        self.backbone = small_backbone(128)
        self.head = nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 64))
        self.prototypes = nn.utils.parametrizations.weight_norm(nn.Linear(64, args.out_dim, bias=False))
        self.prototypes.parametrizations.weight.original0.data.fill_(1.0)
        self.prototypes.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, crops):
        features = [self.backbone(F.interpolate(torch.cat(group), 32)) for group in (crops[:2], crops[2:]) if group]
        return self.prototypes(F.normalize(self.head(torch.cat(features)), dim=1))


student, teacher = Net().to(args.device, args.dtype), Net().to(args.device, args.dtype)
teacher.load_state_dict(student.state_dict())
teacher.requires_grad_(False)
epochs = 2  # of the schedules
dino_loss = DINOLoss(args.out_dim, 2 + args.local_crops, 0.04, 0.07, 1, epochs).to(args.device, args.dtype)
optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 5e-4)
momentum_schedule = cosine_scheduler(0.996, 1, epochs, args.steps)
images, _ = digits(args.steps * args.batch)

with Run(args) as run:
    for it, batch in enumerate(images.split(args.batch)):
        crops = [augment(batch) for _ in range(2)]
        crops += [augment(batch)[:, :, 8:24, 8:24] for _ in range(args.local_crops)]
        crops = [crop.to(args.device) for crop in crops]
        with torch.no_grad():
            teacher_output = teacher(crops[:2])
        loss = dino_loss(student(crops), teacher_output, epoch=epochs * it // args.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        m = momentum_schedule[it]
        if args.fastssl and args.swap == "class":
            update_teacher(student, teacher, m)  # the second line: one launch for all parameters
        else:
            with torch.no_grad():
                for param_q, param_k in zip(student.parameters(), teacher.parameters(), strict=True):
                    param_k.data.mul_(m).add_((1 - m) * param_q.detach().data)
        run.step(loss)
    run.also("length of the centre", dino_loss.center.norm())
