"""A static embedding model of sentence-transformers on pairs of texts, with its ranking losses.

Its Trainer would need the package datasets; this is the loop that it runs.

python -m examples.sentence_transformers.train [--loss MultipleNegativesSymmetricRankingLoss] [--fastssl | --compare]
"""

import torch

import fastssl
from examples._compare import Run, arguments

args = arguments(__doc__, batch=1024, loss=("MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss"))
if args.fastssl:
    fastssl.patch("sentence_transformers")  # the one line

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

tokenizer = Tokenizer(WordLevel({f"word{n}": n for n in range(1000)} | {"[UNK]": 1000}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)], device=args.device).to(args.dtype)
loss_function = getattr(losses, args.loss)(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)


def text_of(words):
    return " ".join(f"word{word}" for word in words.tolist())


def pairs(count):
    """Questions and answers, which share two of their eight words."""
    words = torch.randint(1000, (count, 14))
    return [text_of(each) for each in words[:, :8]], [text_of(each) for each in words[:, 6:]]


with Run(args) as run:
    for _ in range(args.steps):
        features = [{name: value.to(args.device) for name, value in model.tokenize(texts).items()} for texts in pairs(args.batch)]
        loss_value = loss_function(features, labels=None)
        loss_value.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss_value)
