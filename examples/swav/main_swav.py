"""SwAV in the manner of its repository: multi-crop, prototypes of unit length, a queue from some step on, frozen prototypes.

python -m examples.swav.main_swav [--fastssl | --compare]                 all crops go into one call
python -m examples.swav.main_swav --swap patch [--fastssl | --compare]    only the Sinkhorn function is exchanged
"""

import torch
import torch.nn.functional as F
from torch import nn

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits, small_backbone
from examples.swav import losses

args = arguments(__doc__, batch=64, swap=("loss", "patch"), nmb_prototypes=(3000, 64), local_crops=(6, 2), queue_batches=(2, 1))
if args.fastssl and args.swap == "loss":
    from fastssl.compat.swav import swav_loss  # the first line of two
elif args.fastssl:
    fastssl.patch("swav", losses)  # in the repository the module is main_swav


class Net(nn.Module):
    """Crops of two sizes, one size after the other; then an embedding of unit length and its products with the prototypes."""

    def __init__(self):
        super().__init__()
        self.backbone = small_backbone(128)
        self.head = nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))
        self.prototypes = nn.Linear(64, args.nmb_prototypes, bias=False)

    def forward(self, inputs):
        groups = [group for group in (inputs[: nmb_crops[0]], inputs[nmb_crops[0] :]) if group]
        features = [self.backbone(F.interpolate(torch.cat(group), 32)) for group in groups]
        embedding = F.normalize(self.head(torch.cat(features)), dim=1)
        return embedding, self.prototypes(embedding)


nmb_crops = [2, args.local_crops]
queue_starts, freeze_prototypes = 1, 1  # from this step on there is a queue; before this one, prototypes stay
model = Net().to(args.device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-6)
images, _ = digits(args.steps * args.batch)
queue, use_the_queue = None, False

with Run(args) as run:
    for it, batch in enumerate(images.split(args.batch)):
        inputs = [augment(batch) for _ in range(nmb_crops[0])]
        inputs += [augment(batch)[:, :, 8:24, 8:24] for _ in range(nmb_crops[1])]
        with torch.no_grad():
            model.prototypes.weight.copy_(F.normalize(model.prototypes.weight, dim=1))
        embedding, output = model([crop.to(args.device) for crop in inputs])
        if it == queue_starts:
            queue = torch.zeros(2, args.queue_batches * args.batch, embedding.shape[1], device=args.device)
        queue_output = None
        if queue is not None:
            with torch.no_grad():
                use_the_queue = use_the_queue or bool(queue[:, -1].any())  # once it is full
                queue_output = queue @ model.prototypes.weight.t() if use_the_queue else None
                pushed = embedding.view(sum(nmb_crops), args.batch, -1)[:2]
                queue = torch.cat((pushed, queue[:, : -args.batch]), dim=1)
        if args.fastssl and args.swap == "loss":
            loss = swav_loss(output, nmb_crops, queue_output=queue_output)  # the second line, in place of the loop over crops
        else:
            loss = losses.swapped_prediction(output, nmb_crops, queue_output)
        optimizer.zero_grad()
        loss.backward()
        if it < freeze_prototypes:
            model.prototypes.weight.grad = None
        optimizer.step()
        run.step(loss)
    run.also("rows of the queue that were used", 0 if not use_the_queue else queue.shape[1])
