"""VICReg with Accelerate: one script for a CPU, a GPU or many, in the precision that ``accelerate launch`` asks for.

python accelerate_vicreg.py
python accelerate_vicreg.py --data folder:PATH                             on image files of your own
accelerate launch --num-processes 2 accelerate_vicreg.py                   in two processes, each with half of the batch
accelerate launch --mixed-precision bf16 accelerate_vicreg.py
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from fastssl.distributed import Ranks
from fastssl.functional import vicreg
from fastssl.train.augment import TwoViews
from fastssl.train.backbones import ConvEncoder
from fastssl.train.data import batches, load_data
from fastssl.train.evaluate import knn_score


def projector(width: int, hidden: int = 512) -> nn.Sequential:
    """Features (N, width) -> embeddings (N, hidden), whose variance and covariance the loss looks at."""
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, hidden))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the score of the encoder before and after, and returns both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", help="photos, digits or folder:PATH (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step, in all processes (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of AdamW (default: %(default)s)")
    args = parser.parse_args(argv)

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # else several processes on a CPU would not meet
    set_seed(0)
    data = load_data(args.data)
    batch_size = min(args.batch_size, len(data.train))
    views = TwoViews(data.image_size, mirror=data.mirror, colour=data.colour, hue=data.hue)
    encoder = ConvEncoder()
    untrained = knn_score(encoder, data)

    model = nn.Sequential(encoder, projector(256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    sampler = torch.utils.data.RandomSampler(data.train)
    loader = batches(data.train, batch_size // accelerator.num_processes, sampler=sampler, drop_last=True)
    steps = args.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    # Statistics of the rows of all processes: the loss is then that of one process with the joined batch.
    group = Ranks() if accelerator.num_processes > 1 else None

    for epoch in range(args.epochs):
        model.train()
        for images, _ in loader:
            z0, z1 = model(torch.cat(views(images))).chunk(2)
            loss = vicreg(z0, z1, group=group)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    trained = knn_score(encoder, data, device=accelerator.device)
    accelerator.print(f"kNN accuracy on held-out images: untrained {untrained:.3f}, trained {trained:.3f}")
    accelerator.end_training()
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
