"""SimCLR on a model of timm, with timm's transforms, optimizer, schedule and averaged model: its training script, another loss.

python timm_simclr.py
python timm_simclr.py --model resnet18 --data folder:PATH      any model of timm, on image files of your own
"""

import argparse

import timm
import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter
from torch import nn
from torchvision.transforms.functional import to_pil_image

from fastssl.compat.timm import ModelEmaV3  # was: from timm.utils import ModelEmaV3
from fastssl.functional import nt_xent
from fastssl.train.data import load_data
from fastssl.train.evaluate import knn_score


class TwoViews(torch.utils.data.Dataset):
    """Each image twice through a transform of timm: (view, other view), uint8."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        images, _ = self.images.__getitems__([index])
        picture = to_pil_image(images[0])
        return self.transform(picture), self.transform(picture)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the score of the averaged encoder before and after, and returns both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="photos", help="photos, digits or folder:PATH (default: %(default)s)")
    parser.add_argument("--model", default="test_resnet", help="a name that timm.list_models knows (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a step (default: %(default)s)")
    parser.add_argument("--opt", default="adamw", help="an optimizer of timm (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that transform images (default: %(default)s)")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(args.data)
    batch_size = min(args.batch_size, len(data.train))
    model = timm.create_model(args.model, num_classes=0).to(device)
    head = nn.Sequential(nn.Linear(model.num_features, 256), nn.ReLU(), nn.Linear(256, 128)).to(device)
    untrained = knn_score(model, data, device=device)

    jitter = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 0.8, "grayscale_prob": 0.2} if data.colour else {}
    crop = {"scale": (0.2, 1.0), "hflip": 0.5 if data.mirror else 0.0}
    transform = create_transform(data.image_size, is_training=True, normalize=False, **crop, **jitter)
    dataset = TwoViews(data.train, transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=args.workers)
    both = nn.Sequential(model, head)
    optimizer = create_optimizer_v2(both, opt=args.opt, lr=args.lr, weight_decay=1e-4)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=args.epochs, warmup_epochs=0)
    model_ema = ModelEmaV3(model, decay=0.99, use_warmup=True)

    updates = 0
    for epoch in range(epochs):
        losses = AverageMeter()
        both.train()
        for view0, view1 in loader:
            views = torch.cat([view0, view1]).to(device).float() / 255
            z0, z1 = both(views).chunk(2)
            loss = nt_xent(z0, z1, temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            model_ema.update(model, step=updates)
            losses.update(loss.item(), len(view0))
        scheduler.step(epoch + 1)
        print(f"epoch {epoch + 1}: loss {losses.avg:.3f}")

    trained = knn_score(model_ema.module, data, device=device)
    print(f"kNN accuracy on held-out images: untrained {untrained:.3f}, trained {trained:.3f}")
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
