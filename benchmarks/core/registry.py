"""What is measured: each workload is a case of the shared tables with the shapes, constants and targets of a benchmark.

The losses stand here, in ``redundancy.py`` and in ``distributions.py``, the updates in ``updates.py``, masked image modelling in
``masking.py``, neighbours and latent targets in ``latents.py``, soft targets in ``distillation.py``; ``WORKLOADS`` has all of them.
Imports those six, ``accuracy`` and ``workloads``.

    U = 2 N M D FLOP, one sweep over all similarities.       NT-Xent over B pairs: N = M = 2B
    limit = time of ``case.flops(shape)`` in the machine's own matrix product of ``product(shape)``

The limit of NT-Xent and SupCon is 2U: forward U/2 and backward 3U/2, both over one triangle of the symmetric matrix. That of
InfoNCE and CLIP is 4U: forward U, and backward 3U, since the matrix is made again (eager PyTorch stores it and needs 3U for InfoNCE
and 6U for CLIP). That of MoCo is 2U, in one pass; that of SigLIP is 3U, in one sweep.
"""

import torch
import torch.nn.functional as F

from benchmarks.core.accuracy import clip_truth, pair_truth, siglip_truth
from benchmarks.core.distillation import DISTILLATION
from benchmarks.core.distributions import DISTRIBUTIONS
from benchmarks.core.latents import LATENTS
from benchmarks.core.masking import MASKING
from benchmarks.core.redundancy import REDUNDANCY
from benchmarks.core.updates import UPDATES
from benchmarks.core.workloads import (
    AS_FAST,
    Plan,
    Shape,
    Target,
    Workload,
    fast_bfloat16,
    faster,
    no_slower_float16,
    parse_shape,
    shape_name,
)
from fastssl import functional
from fastssl.testing import contrastive
from fastssl.testing.cases import CASES, OpCase
from fastssl.testing.inputs import moco_inputs, randn, sup_con_inputs

__all__ = ["WORKLOADS", "Target", "Workload", "parse_shape", "shape_name"]


# MoCo: queries and keys against a queue, shape (N, K, D).


def _with_queue(shape, dtype=torch.float32, device="cpu", seed=0) -> dict[str, torch.Tensor]:
    """query, key (N, D) and queue (D, K), unit rows and columns."""
    n, k, d = shape
    queue = F.normalize(randn((d, k), torch.float32, "cpu", seed + 9), dim=0)
    return moco_inputs((n, d), dtype, device, seed) | {"queue": queue.to(dtype).to(device)}


MOCO = OpCase(
    "moco",
    _with_queue,
    functional.moco_loss,
    contrastive.moco,
    flops=lambda s: 2 * 2 * s[0] * s[1] * s[2],
    bytes=lambda s, itemsize: (4 * s[0] + s[1]) * s[2] * itemsize,
    shapes=((8, 40, 16), (65, 130, 20)),
)


# SupCon: three views of each sample, labels made from the batch, shape (B, D).


def sup_con_of_batch(features, temperature):
    return functional.sup_con(features, contrastive.sample_labels(features), temperature=temperature, normalize=True)


def eager_sup_con_of_batch(features, temperature):
    return contrastive.sup_con(F.normalize(features, dim=2), contrastive.sample_labels(features), temperature=temperature)


SUP_CON = OpCase(
    "sup_con",
    sup_con_inputs,
    sup_con_of_batch,
    eager_sup_con_of_batch,
    flops=lambda s: 2 * 2 * (3 * s[0]) ** 2 * s[1],
    bytes=lambda s, itemsize: 6 * s[0] * s[1] * itemsize,
    shapes=((8, 16), (65, 20)),
)


def _pairs(shape: Shape) -> int:
    return 2 * shape[0]


def _pair_product(shape: Shape) -> tuple[int, int, int]:
    return 2 * shape[0], 2 * shape[0], shape[1]


def _samples(shape: Shape) -> int:
    return shape[0]


def _square(shape: Shape) -> tuple[int, int, int]:
    return shape[0], shape[0], shape[1]


#: What is measured in 16 bits on a CPU too. The losses of large batches should gain what the products gain.
_NT_XENT_16, _CLIP_16 = ((4096, 128), (4096, 512), (256, 128)), ((4096, 512), (1024, 512))

_NT_XENT_TARGETS = (
    *faster((256, 128), lightly=3, compile=2),
    *faster((1024, 128), lightly=4.5, compile=2),
    *faster((4096, 128), lightly=12, eager=6.5, compile=2.8),
    Target((4096, 128), "times_limit", 1.15),
    Target((4096, 128), "peak_mb", 64),
    *faster((4096, 512), eager=2.8),
    Target((4096, 512), "times_limit", 1.15),
    *faster((8192, 128), eager=9),
    Target((256, 128), "times_limit", 1.4),
    Target((65536, 64), "runs", 1),
    *fast_bfloat16((4096, 128), (4096, 512)),
    *no_slower_float16(*_NT_XENT_16),
)


def _times_3u(shape: Shape, times: float) -> tuple[Target, ...]:
    """Of a loss whose logits fit the caches and are kept: 3 of the 4U that its limit has, and torch.compile, which keeps them."""
    return Target(shape, "times_limit", times * 3 / 4), Target(shape, "not_slower", AS_FAST, "compile")


_CLIP_PEERS = ("eager", "compile", "open_clip", "inf_cl", "cut_cross_entropy", "liger", "linear_cross_entropy")
#: The forward takes 33/32 of U / 2 (of wide rows, U), the backward 2U; for wide rows the vendor's product computes W y.
_SYMMETRIC = Plan((("triangle plain", 0.516), ("bwd plain", 2)), chunks=(1, 0), wide=("wide rows", "wide narrow"))

_NT_XENT_GPU_TARGETS = (
    *(Target((b, 128), "times_faster", 1, "compile", "bfloat16") for b in (256, 2048, 4096)),
    Target((32768, 128), "ms", 6.6, dtype="bfloat16"),
    Target((32768, 128), "peak_mb", 100, dtype="bfloat16"),
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            CASES["nt_xent"],
            "NT-Xent (SimCLR), forward + backward",
            "B x D, N = 2B rows",
            {"temperature": 0.5},
            shapes=((256, 128), (1024, 128), (4096, 128), (4096, 512), (8192, 128)),
            rows=_pairs,
            product=_pair_product,
            quick=((64, 128), (256, 128), (1024, 128)),
            scale=((65536, 64),),
            sixteen=_NT_XENT_16,
            gpu=((256, 128), (2048, 128), (4096, 128), (16384, 128), (32768, 128), (8192, 512)),
            targets=_NT_XENT_TARGETS,
            gpu_targets=_NT_XENT_GPU_TARGETS,
            gpu_plan=_SYMMETRIC,
            truth=pair_truth,
            largest={"cpu": 1 << 18, "cuda": 1 << 18},
        ),
        Workload(
            CASES["dcl"],
            "Decoupled contrastive loss, forward + backward",
            "B x D, N = 2B rows",
            {"temperature": 0.1},
            shapes=((256, 128), (1024, 128), (4096, 128)),
            rows=_pairs,
            product=_pair_product,
            quick=((64, 128),),
            gpu=((4096, 128),),
            gpu_plan=_SYMMETRIC,
            largest={"cpu": 8192, "cuda": 32768},
        ),
        Workload(
            CASES["info_nce"],
            "In-batch InfoNCE, one direction, forward + backward",
            "B x D",
            {"temperature": 0.1},
            shapes=((1024, 128), (4096, 128), (8192, 128)),
            rows=_samples,
            product=_square,
            quick=((128, 128),),
            sixteen=((1024, 128),),
            gpu=((4096, 128), (16384, 512)),
            targets=(*_times_3u((1024, 128), 1.3), *no_slower_float16((1024, 128))),
            gpu_plan=Plan((("fwd plain", 1), ("bwd plain", 4)), chunks=(2, 0), wide=("wide rows", "wide own")),
            largest={"cpu": 8192, "cuda": 32768},
        ),
        Workload(
            CASES["info_nce_passages"],
            "Queries against 3 passages each, with a margin, forward + backward",
            "B x D",
            {"temperature": 0.1},
            shapes=((1024, 768), (4096, 768)),
            rows=_samples,
            product=lambda s: (s[0], 3 * s[0], s[1]),
            quick=((64, 128),),
            gpu=((4096, 768),),
            gpu_plan=Plan((("fwd plain", 1), ("bwd plain", 4)), chunks=(4, 22)),
            largest={"cpu": 4096, "cuda": 16384},
        ),
        Workload(
            MOCO,
            "MoCo's loss, a queue without gradient, forward + backward",
            "N x K x D",
            {"temperature": 0.07},
            shapes=((256, 65536, 128), (1024, 65536, 128)),
            rows=_samples,
            product=lambda s: s,
            quick=((64, 4096, 128),),
            sixteen=((1024, 65536, 128),),
            gpu=((256, 65536, 128), (1024, 65536, 128), (4096, 65536, 128)),
            targets=(
                *faster((256, 65536, 128), eager=4.5),
                *faster((1024, 65536, 128), eager=4.5),
                Target((1024, 65536, 128), "peak_mb", 16),
                *fast_bfloat16((1024, 65536, 128)),
                *no_slower_float16((1024, 65536, 128)),
            ),
            gpu_targets=tuple(
                Target((n, 65536, 128), "ms", ms, dtype="bfloat16") for n, ms in ((256, 0.025), (1024, 0.07), (4096, 0.26))
            ),
            gpu_plan=Plan((("one_pass plain", 2),), chunks=(2, 16)),
            constant_inputs=("queue",),
            largest={"cpu": 4096, "cuda": 16384},
        ),
        Workload(
            CASES["clip"],
            "CLIP, both directions, learned scale, forward + backward",
            "B x D",
            {},
            shapes=((1024, 512), (4096, 512), (8192, 512)),
            rows=_samples,
            product=_square,
            quick=((128, 128),),
            sixteen=_CLIP_16,
            gpu=((4096, 512), (16384, 512), (65536, 768)),
            targets=(
                *faster((4096, 512), open_clip=2.5),
                *_times_3u((1024, 512), 1.1),
                *fast_bfloat16((4096, 512)),
                *no_slower_float16(*_CLIP_16),
            ),
            gpu_targets=(
                *(Target((16384, 512), "times_faster", 1, peer, "bfloat16") for peer in _CLIP_PEERS),
                Target((65536, 768), "ms", 45, dtype="bfloat16"),
                Target((65536, 768), "peak_mb", 1500, dtype="bfloat16"),
            ),
            gpu_plan=Plan((("cross plain", 1), ("bwd plain", 4)), chunks=(2, 0), wide=("wide cross", "wide narrow")),
            truth=clip_truth,
        ),
        Workload(
            CASES["siglip"],
            "SigLIP, learned scale and bias, forward + backward",
            "B x D",
            {},
            shapes=((1024, 512), (4096, 512), (8192, 512)),
            rows=_samples,
            product=_square,
            quick=((128, 128),),
            sixteen=((4096, 512),),
            gpu=((4096, 768), (16384, 768), (65536, 768)),
            targets=(*fast_bfloat16((4096, 512)), *no_slower_float16((4096, 512))),
            gpu_targets=(Target((16384, 768), "ms", 2.4, dtype="bfloat16"),),
            gpu_plan=Plan((("sigmoid", 4),), chunks=(3, 14)),
            truth=siglip_truth,
        ),
        Workload(
            SUP_CON,
            "SupCon, three views, forward + backward",
            "B x D, N = 3B rows",
            {"temperature": 0.07},
            shapes=((256, 128), (1024, 128), (2048, 128)),
            rows=lambda s: 3 * s[0],
            product=lambda s: (3 * s[0], 3 * s[0], s[1]),
            quick=((64, 128),),
            sixteen=((256, 128),),
            gpu=((4096, 128),),
            targets=(*faster((256, 128), eager=4), *no_slower_float16((256, 128))),
            gpu_plan=_SYMMETRIC,
            largest={"cpu": 8192, "cuda": 32768},
        ),
    )
} | (REDUNDANCY | DISTRIBUTIONS | UPDATES | MASKING | LATENTS | DISTILLATION)
