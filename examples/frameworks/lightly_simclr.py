"""SimCLR with lightly's data set, transform and projection head; the loss is fastssl's, of the same name and arguments.

python lightly_simclr.py
python lightly_simclr.py --data folder:PATH      on image files of your own
"""

import argparse

import torch
from lightly.data import LightlyDataset
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torchvision.transforms.functional import to_pil_image

from fastssl.compat.lightly import NTXentLoss  # was: from lightly.loss import NTXentLoss
from fastssl.train.backbones import ConvEncoder
from fastssl.train.data import load_data
from fastssl.train.evaluate import knn_score


class SimCLR(nn.Module):
    def __init__(self, backbone, width):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(width, width, 128)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


class Pictures(torch.utils.data.Dataset):
    """(transformed picture, label), as the data sets of torchvision. For a folder, ``LightlyDataset(PATH)`` needs no such class."""

    transform = target_transform = transforms = None  # lightly sets them

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        images, labels = self.images.__getitems__([index])
        return self.transform(to_pil_image(images[0])), labels[0].item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the score of the encoder before and after, and returns both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", help="photos, digits or folder:PATH (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of AdamW (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that transform images (default: %(default)s)")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(args.data)
    batch_size = min(args.batch_size, len(data.train))
    model = SimCLR(ConvEncoder(), 256).to(device)
    untrained = knn_score(model.backbone, data, device=device)

    mirror = 0.5 if data.mirror else 0.0
    transform = SimCLRTransform(data.image_size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, hf_prob=mirror, normalize=None)
    dataset = LightlyDataset.from_torch_dataset(Pictures(data.train), transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=args.workers)
    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    for epoch in range(args.epochs):
        total = 0.0
        model.train()
        for (view0, view1), _, _ in loader:
            z0, z1 = model(view0.to(device)), model(view1.to(device))
            loss = criterion(z0, z1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")

    trained = knn_score(model.backbone, data, device=device)
    print(f"kNN accuracy on held-out images: untrained {untrained:.3f}, trained {trained:.3f}")
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
