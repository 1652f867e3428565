"""CLIP or SigLIP with open_clip: a tiny model of its class, and the loss that its factory makes from the trainer's arguments.

python -m examples.open_clip.train [--loss siglip] [--fastssl | --compare]
"""

from types import SimpleNamespace

import torch

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits

args = arguments(__doc__, batch=1024, loss=("clip", "siglip"))
if args.fastssl:
    fastssl.patch("open_clip")  # the one line; it stands before the imports from open_clip

import open_clip
from open_clip.factory import create_loss

siglip = args.loss == "siglip"
model = open_clip.CLIP(
    embed_dim=64,
    vision_cfg={"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32},
    text_cfg={"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    init_logit_bias=-10.0 if siglip else None,
    output_dict=True,
).to(args.device)
options = {"distill": False, "local_loss": False, "gather_with_grad": False, "horovod": False, "loss_dist_impl": None}
loss_fn = create_loss(SimpleNamespace(model="ViT-tiny", siglip=siglip, rank=0, world_size=1, **options))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)

images, labels = digits(args.steps * args.batch)
words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
texts = open_clip.SimpleTokenizer(context_length=8)([f"the digit {words[label]}, {n}" for n, label in enumerate(labels)])
dataset = torch.utils.data.TensorDataset(augment(images), texts)
dataloader = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, drop_last=True)

with Run(args) as run:
    for images, texts in dataloader:
        optimizer.zero_grad()
        model_out = model(images.to(args.device), texts.to(args.device))
        losses = loss_fn(**model_out, output_dict=True)
        total_loss = sum(losses.values())
        total_loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # as its trainer does: at most ln 100
        run.step(total_loss)
    run.also("logit scale", model.logit_scale)
