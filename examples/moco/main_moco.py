"""MoCo in the manner of its repository: builder, cross-entropy of the logits, momentum encoder and queue.

python -m examples.moco.main_moco [--fastssl | --compare]                 the class is exchanged, and the call of the loss
python -m examples.moco.main_moco --swap patch [--fastssl | --compare]    only the queue and the momentum update are exchanged
"""

import torch
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views
from examples.moco.builder import MoCo

args = arguments(__doc__, batch=256, swap=("class", "patch"), queue=(16384, 128))
if args.fastssl and args.swap == "class":
    from fastssl.compat.moco import MoCo  # the first line of two
elif args.fastssl:
    fastssl.patch("moco", MoCo)


def accuracy(output, target):
    return 100 * (output.argmax(1) == target).double().mean()


model = MoCo(lambda num_classes: small_backbone(num_classes), dim=128, K=args.queue, m=0.99, T=0.1).to(args.device)
criterion = nn.CrossEntropyLoss().to(args.device)
optimizer = torch.optim.SGD(model.encoder_q.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
train_loader = torch.utils.data.DataLoader(two_views(args.steps * args.batch), args.batch, shuffle=True, drop_last=True)

with Run(args) as run:
    for im_q, im_k, _ in train_loader:
        im_q, im_k = im_q.to(args.device), im_k.to(args.device)
        if args.fastssl and args.swap == "class":
            loss, acc1, _ = model.loss(im_q=im_q, im_k=im_k)  # the second line: without the logits (N, 1 + K)
        else:
            output, target = model(im_q=im_q, im_k=im_k)
            loss, acc1 = criterion(output, target), accuracy(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss)
    run.also("accuracy of the last step", acc1)
