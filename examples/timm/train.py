"""Supervised training in the manner of timm: a model of its registry, AdamW, and the averaged model that is evaluated.

python -m examples.timm.train [--fastssl | --compare]
"""

import torch
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits

args = arguments(__doc__, batch=16, model=("vit_tiny_patch16_224", "test_vit"))
if args.fastssl:
    fastssl.patch("timm")  # the one line for ModelEmaV3
    from fastssl.optim import AdamW  # the one line for the optimizer
else:
    from torch.optim import AdamW

import timm
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

model = timm.create_model(args.model, num_classes=10, img_size=32).to(args.device)
model_ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
optimizer = AdamW(param_groups_weight_decay(model, weight_decay=0.05), lr=1e-3)
lr_scheduler = CosineLRScheduler(optimizer, t_initial=args.steps, warmup_t=1, warmup_lr_init=1e-4, t_in_epochs=False)
train_loss_fn = nn.CrossEntropyLoss()
images, labels = digits(args.steps * args.batch)
dataset = torch.utils.data.TensorDataset(augment(images), labels)
loader_train = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, drop_last=True)

with Run(args) as run:
    for num_updates, (input, target) in enumerate(loader_train, start=1):
        input, target = input.to(args.device), target.to(args.device)
        loss = train_loss_fn(model(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model_ema.update(model, step=num_updates)
        lr_scheduler.step_update(num_updates=num_updates)
        run.step(loss)
    model_ema.module.eval()
    with torch.no_grad():
        run.also("loss of the averaged model", train_loss_fn(model_ema.module(input), target))
