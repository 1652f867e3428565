"""pytorch-metric-learning: NTXentLoss on two views without labels, in SelfSupervisedLoss, or SupConLoss on labels.

python -m examples.pytorch_metric_learning.train [--loss SupConLoss] [--fastssl | --compare]
"""

import torch

import fastssl
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=128, loss=("NTXentLoss", "SupConLoss"))
if args.fastssl:
    fastssl.patch("pytorch_metric_learning")  # the one line; it stands before the imports from the library

from pytorch_metric_learning import losses

model = small_backbone(128).to(args.device)
loader = torch.utils.data.DataLoader(two_views(args.steps * args.batch), batch_size=args.batch, shuffle=True, drop_last=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
if args.loss == "NTXentLoss":
    loss_func = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.1))
else:
    loss_func = losses.SupConLoss(temperature=0.1)

with Run(args) as run:
    for data, augmented, labels in loader:
        data, augmented, labels = data.to(args.device), augmented.to(args.device), labels.to(args.device)
        optimizer.zero_grad()
        embeddings = model(data)
        if args.loss == "NTXentLoss":
            loss = loss_func(embeddings, model(augmented))
        else:
            loss = loss_func(embeddings, labels)
        loss.backward()
        optimizer.step()
        run.step(loss)
