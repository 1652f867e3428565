"""Pre-training of a masked autoencoder in the manner of the MAE repository: warm-up and half a cosine, accumulation, AdamW.

python -m examples.mae.main_pretrain [--fastssl | --compare]
"""

import math

import torch

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits

args = arguments(__doc__, batch=256, accum_iter=(1, 2))

from examples.mae.models_mae import MaskedAutoencoderViT

if args.fastssl:
    fastssl.patch("mae", MaskedAutoencoderViT)  # the one line


def adjust_learning_rate(optimizer, epoch, warmup_epochs=0.25, lr=1.5e-3):
    after = (epoch - warmup_epochs) / (1 - warmup_epochs)
    lr = lr * epoch / warmup_epochs if epoch < warmup_epochs else lr * 0.5 * (1 + math.cos(math.pi * after))
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr


model = MaskedAutoencoderViT(norm_pix_loss=True).to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05)
images, labels = digits(args.steps * args.batch)
dataset_train = torch.utils.data.TensorDataset(augment(images), labels)
data_loader = torch.utils.data.DataLoader(dataset_train, batch_size=args.batch, shuffle=True, drop_last=True)

with Run(args) as run:
    optimizer.zero_grad()
    for data_iter_step, (samples, _) in enumerate(data_loader):
        if data_iter_step % args.accum_iter == 0:
            adjust_learning_rate(optimizer, data_iter_step / len(data_loader))
        loss, _, _ = model(samples.to(args.device), mask_ratio=0.75)
        (loss / args.accum_iter).backward()
        if (data_iter_step + 1) % args.accum_iter == 0:
            optimizer.step()
            optimizer.zero_grad()
        run.step(loss)
