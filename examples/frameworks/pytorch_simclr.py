"""SimCLR in plain PyTorch: a training loop of your own, mixed precision, and several processes in DistributedDataParallel.

python pytorch_simclr.py                                      on the GPU, or on the CPU where there is none
python pytorch_simclr.py --data folder:PATH                   on image files of your own
torchrun --nproc-per-node 2 pytorch_simclr.py                 in two processes, each with half of the batch
"""

import argparse
import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler

from fastssl.distributed import Ranks
from fastssl.functional import nt_xent
from fastssl.train.augment import TwoViews
from fastssl.train.backbones import ConvEncoder
from fastssl.train.data import batches, load_data
from fastssl.train.evaluate import knn_score


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", help="photos, digits or folder:PATH (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step, in all processes (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of AdamW (default: %(default)s)")
    precisions = ("float32", "bfloat16", "float16")
    parser.add_argument("--precision", choices=precisions, help="of the encoder (default: bfloat16 on a GPU, float32 on a CPU)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the score of the encoder before and after, and returns both."""
    args = options(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    together = "RANK" in os.environ  # torchrun sets it
    if together:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if together else (1, 0)
    dtype = getattr(torch, args.precision or ("bfloat16" if device.type == "cuda" else "float32"))

    torch.manual_seed(0)  # the same weights in every process
    data = load_data(args.data)
    batch_size = min(args.batch_size, len(data.train))
    views = TwoViews(data.image_size, mirror=data.mirror, colour=data.colour, hue=data.hue)
    encoder = ConvEncoder().to(device)
    head = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128)).to(device)
    untrained = knn_score(encoder, data, device=device)

    torch.manual_seed(1 + rank)  # other augmentations in every process
    model = nn.Sequential(encoder, head)
    if together:
        model = DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == "cuda" else model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    sampler = DistributedSampler(data.train, world, rank, drop_last=True)
    loader = batches(data.train, batch_size // world, sampler=sampler, drop_last=True)
    group = Ranks() if together else None  # the negatives of all processes, or of this one

    for epoch in range(args.epochs):
        model.train()
        sampler.set_epoch(epoch)
        for images, _ in loader:
            view0, view1 = views(images.to(device))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                z0, z1 = model(torch.cat([view0, view1])).chunk(2)  # one call: DistributedDataParallel expects one a step
                loss = nt_xent(z0, z1, temperature=0.5, group=group)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    trained = knn_score(encoder, data, device=device)
    if rank == 0:
        print(f"kNN accuracy on held-out images: untrained {untrained:.3f}, trained {trained:.3f}")
    if together:
        distributed.destroy_process_group()
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
