"""The steps of masked image modelling that are measured, forward and backward: shapes, constants and targets of each.

The mask ratio is 0.75.

    N images of S x S in patches of p x p, L = (S / p)^2 of them, K = L / 4 kept; widths E of the encoder, D of the decoder

The limit is that of the updates, with the bytes that the contracts in ``fastssl/ops`` name. Where patches are embedded, it is the
time of two products N (1 + K) x E x 3 p^2. "eager" is the plain PyTorch form of ``fastssl/testing/masking.py``. Imports
``workloads``.
"""

import torch

from benchmarks.core.workloads import Shape, Target, Update, faster
from fastssl.testing.masked_updates import MASK_RATIO, MASKED_CASES, embed_product

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_RATIO = {"mask_ratio": MASK_RATIO}
_EMBED, _LOSS, _BUNDLE = (64, 224, 16, 768), (64, 224, 16), (64, 224, 16, 768, 512)
_MASKS, _LARGE_BUNDLE = (4096, 196), (4096, 224, 16, 768, 512)


def _loss(name: str, title: str, normalize: bool) -> Update:
    return Update(
        MASKED_CASES[name],
        title,
        "N x S x p",
        {"norm_pix_loss": normalize},
        shapes=(_LOSS,),
        quick=((4, 16, 4),),
        gpu=((1024, 224, 16),),
        targets=faster(_LOSS, mae_repository=15),
        dtypes=_DTYPES,
    )


def _tokens(name: str, title: str, constants: dict, shape: Shape) -> Update:
    """Shapes (N, L, width)."""
    return Update(
        MASKED_CASES[name],
        title,
        "N x L x D",
        constants,
        shapes=(shape,),
        quick=((4, 16, 24),),
        gpu=((1024, *shape[1:]),),
        targets=(Target(shape, "times_limit", 2),),
        dtypes=_DTYPES,
    )


MASKING = {
    workload.name: workload
    for workload in (
        Update(
            MASKED_CASES["mask_ids"],
            "Random mask from noise (eager: a stable argsort, its inverse by scatter)",
            "N x L",
            _RATIO,
            shapes=((256, 196), (64, 196), (1024, 196), (64, 1568)),
            quick=((8, 20),),
            gpu=(_MASKS, (64, 1568)),
            targets=faster((256, 196), mae_repository=8),
            gpu_targets=(Target(_MASKS, "launches", 1),),
        ),
        _tokens("random_masking", "Random masking of tokens (forward + backward; eager: sort, gather)", _RATIO, (64, 196, 768)),
        Update(
            MASKED_CASES["embed_visible"],
            "Embedding of the visible patches (forward + backward; eager: convolution over all patches, gather)",
            "N x S x p x E",
            {},
            shapes=(_EMBED,),
            quick=((4, 16, 4, 24),),
            gpu=((1024, 224, 16, 768),),
            targets=faster(_EMBED, mae_repository=4),
            product=embed_product,
            dtypes=_DTYPES,
        ),
        _tokens("restore_tokens", "Tokens back to their places (forward + backward; eager: cat, gather, cat)", {}, (64, 196, 512)),
        _loss("patch_loss", "Loss of the removed patches (forward + backward; eager: of all patches, then the mask)", False),
        _loss("patch_loss_norm", "Loss with normalised targets (forward + backward; eager: of all patches, then the mask)", True),
        Update(
            MASKED_CASES["mae_bundle"],
            "MAE around its blocks (mask, embedding, decoder's input, normalised loss; forward + backward)",
            "N x S x p x E x D",
            _RATIO | {"norm_pix_loss": True},
            shapes=(_BUNDLE,),
            quick=((4, 16, 4, 24, 20),),
            gpu=(_LARGE_BUNDLE, _BUNDLE),
            targets=(*faster(_BUNDLE, mae_repository=4), Target(_BUNDLE, "times_less_memory", 3, "mae_repository")),
            gpu_targets=(Target(_LARGE_BUNDLE, "ms", 4, dtype="bfloat16"),),
            product=embed_product,
            dtypes=_DTYPES,
        ),
    )
}
