"""A two-tower retriever in the manner of tevatron and FlagEmbedding: each query comes with its passage and hard negatives, and all
passages of the batch are scored.

python -m examples.retrieval.train [--fastssl | --compare]
"""

import torch
import torch.nn.functional as F
from torch import nn

from examples._compare import Run, arguments

args = arguments(__doc__, batch=512, group_size=(8, 2))
if args.fastssl:
    from fastssl.functional import info_nce


class EncoderModel(nn.Module):
    """One encoder of bags of words for both sides; rows of unit length."""

    def __init__(self, words=1000, width=256, temperature=0.02):
        super().__init__()
        self.encoder, self.temperature = nn.EmbeddingBag(words, width), temperature

    def encode(self, tokens):
        return F.normalize(self.encoder(tokens), dim=-1)

    def forward(self, query, passage):
        """query (B, words), passage (B G, words): of each query its own passage first, then G - 1 hard negatives."""
        q_reps, p_reps = self.encode(query), self.encode(passage)
        if args.fastssl:
            return info_nce(q_reps, p_reps, temperature=self.temperature)  # the one line, in place of the three below
        scores = q_reps @ p_reps.transpose(0, 1) / self.temperature
        target = torch.arange(len(q_reps), device=scores.device) * (len(p_reps) // len(q_reps))
        return F.cross_entropy(scores, target)


def batches():
    """A passage shares three of its eight words with its query, a hard negative one."""
    for _ in range(args.steps):
        query = torch.randint(1000, (args.batch, 8))
        passage = torch.randint(1000, (args.batch, args.group_size, 8))
        passage[:, 0, :3], passage[:, 1:, 0] = query[:, :3], query[:, None, 3]
        yield query.to(args.device), passage.flatten(0, 1).to(args.device)


model = EncoderModel().to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

with Run(args) as run:
    for query, passage in batches():
        loss = model(query, passage)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss)
