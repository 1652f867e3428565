"""Barlow Twins and VICReg with lightly: a projection head, two views, and BarlowTwinsLoss or VICRegLoss.

python -m examples.lightly.barlow_vicreg [--loss VICRegLoss] [--fastssl | --compare]
"""

import torch
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=256, loss=("BarlowTwinsLoss", "VICRegLoss"), width=(2048, 256))
if args.fastssl:
    fastssl.patch("lightly")  # the one line; it stands before the imports from lightly

from lightly.loss import BarlowTwinsLoss
from lightly.loss.vicreg_loss import VICRegLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead, VICRegProjectionHead

head, criterion = {
    "BarlowTwinsLoss": (BarlowTwinsProjectionHead, BarlowTwinsLoss()),
    "VICRegLoss": (VICRegProjectionHead, VICRegLoss()),
}[args.loss]


class Embedder(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = head(128, args.width, args.width)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


model = Embedder(small_backbone(128)).to(args.device)
dataset = two_views(args.steps * args.batch)
dataloader = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, drop_last=True)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

with Run(args) as run:
    for view0, view1, _ in dataloader:
        z0, z1 = model(view0.to(args.device)), model(view1.to(args.device))
        loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss)
