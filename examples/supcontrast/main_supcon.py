"""Supervised contrastive training in the manner of the SupContrast repository, or SimCLR with ``--method SimCLR``.

python -m examples.supcontrast.main_supcon [--method SimCLR] [--fastssl | --compare]
"""

import torch
import torch.nn.functional as F
from torch import nn

from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=1024, method=("SupCon", "SimCLR"))
if args.fastssl:
    from fastssl.compat.supcon import SupConLoss  # the one line
else:
    from examples.supcontrast.losses import SupConLoss


class SupConNet(nn.Module):
    """An encoder and a projection head; the features have unit length."""

    def __init__(self, feat_dim=128):
        super().__init__()
        self.encoder = small_backbone(128)
        self.head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(inplace=True), nn.Linear(128, feat_dim))

    def forward(self, x):
        return F.normalize(self.head(self.encoder(x)), dim=1)


model = SupConNet().to(args.device)
criterion = SupConLoss(temperature=0.1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
train_set = two_views(args.steps * args.batch)
train_loader = torch.utils.data.DataLoader(train_set, batch_size=args.batch, shuffle=True, drop_last=True)

with Run(args) as run:
    for view0, view1, labels in train_loader:
        images = torch.cat([view0, view1]).to(args.device)
        f1, f2 = model(images).chunk(2)
        features = torch.stack([f1, f2], dim=1)
        if args.method == "SupCon":
            loss = criterion(features, labels.to(args.device))
        else:
            loss = criterion(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss)
