"""Pairs of query and key with info-nce-pytorch, against negatives of one's own.

python -m examples.info_nce.train [--fastssl | --compare]
"""

import torch

import fastssl
from examples._compare import Run, arguments
from examples._digits import small_backbone, two_views

args = arguments(__doc__, batch=512, negatives=(16384, 32))
if args.fastssl:
    fastssl.patch("info_nce")  # the one line; or: from fastssl.functional import info_nce

from info_nce import InfoNCE

encoder = small_backbone(128).to(args.device)
dataset = two_views(args.steps * args.batch)
loader = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, drop_last=True)
negative_keys = torch.randn(args.negatives, 128, device=args.device)  # such as embeddings of another data set
loss_function = InfoNCE(temperature=0.1, negative_mode="unpaired")
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)

with Run(args) as run:
    for query, positive_key, _ in loader:
        loss = loss_function(encoder(query.to(args.device)), encoder(positive_key.to(args.device)), negative_keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss)
