"""MoCo with lightly: a momentum encoder, a schedule of its momentum, and NTXentLoss with a memory bank.

python -m examples.lightly.moco [--fastssl | --compare]
"""

import copy

import torch
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=256, bank=(16384, 64))
if args.fastssl:
    fastssl.patch("lightly")  # the one line; it stands before the imports from lightly

from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule


class MoCo(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(128, 128, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()


model = MoCo(small_backbone(128)).to(args.device)
dataset = two_views(args.steps * args.batch)
dataloader = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, drop_last=True)
criterion = NTXentLoss(temperature=0.1, memory_bank_size=(args.bank, 128)).to(args.device, args.dtype)
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

with Run(args) as run:
    for step, (x_query, x_key, _) in enumerate(dataloader):
        momentum = cosine_schedule(step, args.steps, 0.996, 1)
        update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
        query = model(x_query.to(args.device))
        key = model.forward_momentum(x_key.to(args.device))
        loss = criterion(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss)
