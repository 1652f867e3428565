"""The losses of neighbours, latent targets and sampled negatives that are measured, forward and backward, and a step of skip-gram:
shapes, targets.

    KoLeo: N rows of width D.     Masked latents: K of the L tokens of each of N samples, width D, smooth L1, normalised target
    Sampled InfoNCE: M queries of width D, each with J negatives out of M rows; the shape is that of wav2vec 2.0
    Pairs of words: B pairs with K negatives each, out of V words of width D; loss, sparse gradients and a step of Adam

The limit of masked latents is that of the updates: their bytes at the rate of this machine's memory. That of KoLeo is half the
time of the product N x N x D, of which a triangle is enough. "eager" is the plain PyTorch form of
``fastssl/testing/latent_updates.py``, ``sampled.py`` and ``words.py``. Imports ``workloads``.
"""

import torch

from benchmarks.core.workloads import Update, faster
from fastssl.testing.latent_updates import LATENT_CASES
from fastssl.testing.sampled import SAMPLED_CASE
from fastssl.testing.words import WORDS_CASE

_BOTH = (torch.float32, torch.bfloat16)
_LATENT = (8, 1024, 512, 768)
_SAMPLED = (2100, 100, 256)
_WORDS = ((4096, 5, 50_000, 100), (4096, 10, 100_000, 200))

LATENTS = {
    workload.name: workload
    for workload in (
        Update(
            LATENT_CASES["koleo"],
            "KoLeo (forward + backward; eager: the matrix of cosines)",
            "N x D",
            {},
            shapes=((256, 1024),),
            quick=((64, 32),),
            gpu=((256, 1024), (4096, 1024)),
            product=lambda s: (s[0], s[0], s[1]),
        ),
        Update(
            LATENT_CASES["masked_latent"],
            "Loss of predicted latents (forward + backward; eager: normalise all tokens, gather, smooth L1)",
            "N x L x K x D",
            {},
            shapes=(_LATENT,),
            quick=((2, 20, 7, 24),),
            gpu=((24, 2048, 1024, 1024),),
            targets=faster(_LATENT, eager=3),
            dtypes=_BOTH,
        ),
        Update(
            SAMPLED_CASE,
            "InfoNCE over sampled negatives (forward + backward; eager: the rows of all negatives)",
            "M x J x D",
            {},
            shapes=(_SAMPLED,),
            quick=((20, 5, 24),),
            gpu=(_SAMPLED,),
            targets=faster(_SAMPLED, eager=10, transformers=10),
        ),
        Update(
            WORDS_CASE,
            "Skip-gram: loss, sparse gradients, Adam (eager: Embedding(sparse=True), SparseAdam)",
            "B x K x V x D",
            {"lr": 1e-3, "eps": 1e-6},
            shapes=_WORDS,
            quick=((20, 5, 30, 24),),
            gpu=_WORDS,
            targets=(*faster(_WORDS[0], eager=1.5, dense_gradients=1.5), *faster(_WORDS[1], eager=3, dense_gradients=3)),
            gpu_times=15.0,  # not the bytes, but two sorts of the ids and some thirty short launches between two waits for the host
        ),
    )
}
