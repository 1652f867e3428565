"""MoCo in Lightning: a method of fastssl, with its teacher and its queue, as the inside of a LightningModule.

python lightning_moco.py
python lightning_moco.py --data folder:PATH      on image files of your own
"""

import argparse

import lightning
import torch

from fastssl.methods import MoCo
from fastssl.optim import AdamW
from fastssl.train.augment import TwoViews
from fastssl.train.backbones import ConvEncoder
from fastssl.train.data import batches, load_data
from fastssl.train.evaluate import knn_score


class SelfSupervised(lightning.LightningModule):
    """Any method of ``fastssl.methods`` that takes two views. Its buffers (teacher, queue, step) are in Lightning's checkpoints."""

    def __init__(self, method, views, lr):
        super().__init__()
        self.method, self.views, self.lr = method, views, lr

    def training_step(self, batch, batch_idx):
        images, _ = batch
        loss = self.method(*self.views(images))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        trained = [parameter for parameter in self.method.parameters() if parameter.requires_grad]  # not those of the teacher
        optimizer = AdamW(trained, lr=self.lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the score of the encoder before and after, and returns both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", help="photos, digits or folder:PATH (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--queue-size", type=int, default=2048, help="keys in the queue (default: %(default)s)")
    args = parser.parse_args(argv)

    lightning.seed_everything(0, verbose=False)
    data = load_data(args.data)
    batch_size = min(args.batch_size, len(data.train))
    views = TwoViews(data.image_size, mirror=data.mirror, colour=data.colour, hue=data.hue)
    method = MoCo(ConvEncoder(), mlp=True, queue_size=args.queue_size, temperature=0.2, momentum=0.99)
    untrained = knn_score(method, data)

    sampler = torch.utils.data.RandomSampler(data.train)
    loader = batches(data.train, batch_size, sampler=sampler, drop_last=True)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=args.epochs, devices=1, **quiet)  # the accelerator is found
    trainer.fit(SelfSupervised(method, views, args.lr), loader)

    trained = knn_score(method, data)
    print(f"kNN accuracy on held-out images: untrained {untrained:.3f}, trained {trained:.3f}")
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
