"""SimCLR in Lightning on several processes, with the negatives of all of them.

torchrun --nproc-per-node 2 -m examples.torchrun.lightning_simclr [--fastssl]
python -m examples.torchrun.lightning_simclr --compare
"""

import torch
import torch.nn.functional as F
from torch import distributed, nn

import fastssl.functional
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=1024, processes=2)

import lightning


class SimCLR(lightning.LightningModule):
    def __init__(self, temperature=0.1):
        super().__init__()
        self.encoder, self.temperature = small_backbone(128), temperature
        self.projector = nn.Sequential(nn.ReLU(), nn.Linear(128, 128))

    def nt_xent(self, z0, z1):
        """Each row against the rows of all processes, which Lightning gathers with their gradients."""
        z = F.normalize(torch.cat([z0, z1]), dim=1)
        rows, first = torch.arange(len(z), device=z.device), self.global_rank * len(z)
        logits = z @ self.all_gather(z, sync_grads=True).flatten(0, 1).T / self.temperature
        logits[rows, first + rows] = -torch.inf
        return F.cross_entropy(logits, first + rows.roll(len(z0)))

    def training_step(self, batch, batch_idx):
        view0, view1, _ = batch
        z0, z1 = self.projector(self.encoder(torch.cat([view0, view1]))).chunk(2)
        if args.fastssl:
            loss = fastssl.functional.nt_xent(z0, z1, self.temperature, group=distributed.group.WORLD)  # the one line
        else:
            loss = self.nt_xent(z0, z1)
        run.step(self.all_gather(loss.detach()).mean())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
accelerator = "gpu" if args.device == "cuda" else "cpu"
trainer = lightning.Trainer(max_epochs=1, strategy="ddp", devices=2, accelerator=accelerator, **quiet)
dataset = two_views(args.steps * args.batch)
loader = torch.utils.data.DataLoader(dataset, args.batch // trainer.world_size, shuffle=True, drop_last=True)
with Run(args) as run:
    trainer.fit(SimCLR(), loader)
