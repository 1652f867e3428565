"""SimCLR in the manner of solo-learn: a LightningModule whose training step calls ``simclr_loss_func`` with the images' numbers.

solo-learn is installed from its repository, not from PyPI. Without it the function below stands for its own, with the same
arguments and value. Where solo-learn is installed, ``fastssl.patch("solo")`` before its imports does the same as the line below.

python -m examples.solo_learn.simclr [--fastssl | --compare]
"""

import torch
import torch.nn.functional as F
from torch import nn

from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=1024)

import lightning


def simclr_loss_func(z, indexes, temperature=0.1):
    """Rows of the same index are positives, all others negatives: -log of the positives' share in each row's softmax."""
    z = F.normalize(z, dim=-1)
    exponentials = torch.exp(torch.einsum("if,jf->ij", z, z) / temperature)
    same = indexes[:, None] == indexes[None, :]
    positives = (exponentials * same.clone().fill_diagonal_(False)).sum(1)
    return -torch.log(positives / (positives + (exponentials * ~same).sum(1))).mean()


if args.fastssl:
    from fastssl.compat.solo import simclr_loss_func  # the one line; it was: from solo.losses.simclr


class SimCLR(lightning.LightningModule):
    def __init__(self, run, temperature=0.2):
        super().__init__()
        self.backbone, self.temperature, self.run = small_backbone(128), temperature, run
        self.projector = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))

    def training_step(self, batch, batch_idx):
        indexes, X, _ = batch
        z = torch.cat([self.projector(self.backbone(x)) for x in X])
        nce_loss = simclr_loss_func(z, indexes=indexes.repeat(2), temperature=self.temperature)
        self.run.step(nce_loss)
        return nce_loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


dataset = two_views(args.steps * args.batch)
batches = [(index, [view0, view1], label) for index, (view0, view1, label) in enumerate(dataset)]
loader = torch.utils.data.DataLoader(batches, batch_size=args.batch, shuffle=True, drop_last=True)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
with Run(args) as run:
    trainer = lightning.Trainer(max_epochs=1, accelerator="gpu" if args.device == "cuda" else "cpu", devices=1, **quiet)
    trainer.fit(SimCLR(run), loader)
