"""CLIP with open_clip's model, tokenizer, transforms and schedule; the loss is fastssl's, and zero-shot accuracy is the score.

python open_clip_digits.py
"""

import argparse
import math
import random

import open_clip
import torch
from open_clip_train.scheduler import cosine_lr
from sklearn.datasets import load_digits
from torch import nn
from torchvision.transforms.functional import to_pil_image

from fastssl.compat.open_clip import ClipLoss  # was: from open_clip import ClipLoss

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("the digit {}", "a {} written by hand", "a scan of the number {}", "somebody wrote {}", "this is a {}", "{}")
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


class Pairs(torch.utils.data.Dataset):
    """(image, caption) of digits, each time in other words."""

    def __init__(self, pictures, labels, transform, tokenizer):
        self.pictures, self.labels, self.transform = pictures, labels, transform
        self.captions = tokenizer([template.format(word) for word in WORDS for template in TEMPLATES]).view(len(WORDS), -1, 16)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        caption = self.captions[self.labels[index], random.randrange(len(TEMPLATES))]
        return self.transform(self.pictures[index]), caption


@torch.no_grad()
def zero_shot(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, tokenizer) -> float:
    """The share of images (N, 3, H, W) whose nearest class, by the mean embedding of its captions, is their own."""
    model.eval()
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, WORDS, TEMPLATES, device=images.device)
    return (model.encode_image(images, normalize=True) @ classifier).argmax(1).eq(labels).float().mean().item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the zero-shot accuracy before and after, and returns both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of AdamW (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=20, help="steps until the learning rate is reached (default: %(default)s)")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    random.seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.CLIP(**MODEL, output_dict=True).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    augment = open_clip.AugmentationCfg(scale=(0.7, 1.0))
    transforms = {train: open_clip.image_transform(32, is_train=train, aug_cfg=augment) for train in (True, False)}

    images, labels = load_digits(return_X_y=True)
    pictures = [to_pil_image(torch.tensor(row).view(8, 8).div(16)).convert("RGB").resize((32, 32)) for row in images]
    held_out = len(labels) // 5
    dataset = Pairs(pictures[held_out:], labels[held_out:], transforms[True], tokenizer)
    dataloader = torch.utils.data.DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
    test = torch.stack([transforms[False](picture) for picture in pictures[:held_out]]).to(device)
    test_labels = torch.tensor(labels[:held_out], device=device)
    untrained = zero_shot(model, test, test_labels, tokenizer)

    loss_fn = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    scheduler = cosine_lr(optimizer, args.lr, args.warmup, args.epochs * len(dataloader))
    step = 0
    for epoch in range(args.epochs):
        model.train()
        for images, texts in dataloader:
            scheduler(step)
            step += 1
            optimizer.zero_grad()
            model_out = model(images.to(device), texts.to(device))
            losses = loss_fn(**model_out, output_dict=True)
            total_loss = sum(losses.values())
            total_loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))  # as its trainer does
        print(f"epoch {epoch + 1}: loss {total_loss.item():.3f}")

    trained = zero_shot(model, test, test_labels, tokenizer)
    print(f"zero-shot accuracy on held-out digits: untrained {untrained:.3f}, trained {trained:.3f}")
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
