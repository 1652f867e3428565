"""SimCLR with lightly: its projection head and its NTXentLoss.

python -m examples.lightly.simclr [--fastssl | --compare]
"""

import torch
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=1024)
if args.fastssl:
    fastssl.patch("lightly")  # the one line; it stands before the imports from lightly

from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead


class SimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(128, 128, 128)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


model = SimCLR(small_backbone(128)).to(args.device)
dataset = two_views(args.steps * args.batch)
dataloader = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, drop_last=True)
criterion = NTXentLoss(temperature=0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)

with Run(args) as run:
    for view0, view1, _ in dataloader:
        z0, z1 = model(view0.to(args.device)), model(view1.to(args.device))
        loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss)
