"""What is measured: each work is a case of the shared table with the shapes, constants and targets of a benchmark.

    U = 2 N M D FLOP, one sweep over all similarities.       NT-Xent over B pairs: N = M = 2B
    limit = time of ``case.flops(shape)`` in the machine's own matrix product of ``product(shape)``

The limit of NT-Xent is 2U: forward U/2 and backward 3U/2, both over one triangle of the symmetric matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from benchmarks.gate import pair_truth
from fastssl import functional
from fastssl.testing.cases import CASES, OpCase, two_views

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """What a result should reach at one shape.

    ``kind``: "times_faster" than ``peer`` (at least ``value``), "times_limit" (at most ``value`` times the limit),
    "peak_mb" (at most), "runs" (forward and backward finish), "ms" (at most).
    """

    shape: Shape
    kind: str
    value: float
    peer: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        return {
            "times_faster": f">= {self.value:g}x {self.peer}",
            "times_limit": f"<= {self.value:g}x the limit",
            "peak_mb": f"<= {self.value:g} MB above the inputs",
            "ms": f"<= {self.value:g} ms",
            "runs": "forward and backward run",
        }[self.kind]


@dataclass(frozen=True)
class Work:
    """One row of the benchmark: a case, and how to measure it. ``constants`` are keywords that every implementation gets."""

    case: OpCase
    title: str
    axes: str
    constants: dict[str, float]
    shapes: tuple[Shape, ...]
    rows: Callable[[Shape], int]
    product: Callable[[Shape], tuple[int, int, int]]
    quick: tuple[Shape, ...] = ()
    scale: tuple[Shape, ...] = ()
    gpu: tuple[Shape, ...] = ()
    targets: tuple[Target, ...] = ()
    gpu_targets: tuple[Target, ...] = ()
    gpu_sweeps: float = 3.0
    truth: Callable | None = None
    largest: dict[str, int] = field(default_factory=lambda: {"cpu": 16384, "cuda": 65536})

    @property
    def name(self) -> str:
        return self.case.name

    def sweep_flops(self, shape: Shape) -> float:
        """U in FLOP."""
        n, m, d = self.product(shape)
        return 2.0 * n * m * d

    def predicted_ms(self, shape: Shape, flop_per_s: float) -> float:
        """ms on a GPU that reaches ``flop_per_s`` in its matrix product: ``gpu_sweeps`` sweeps and no overhead."""
        return 1e3 * self.gpu_sweeps * self.sweep_flops(shape) / flop_per_s


# --- in-batch InfoNCE, one direction ------------------------------------------------------------------- shape (B, D)


def info_nce_rows(z0, z1, temperature=0.1):
    """In-batch InfoNCE of the queries z0 (B, D) over the keys z1 (B, D), composed from ``similarity_lse``; mean over B."""
    q, k = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    ids = torch.arange(len(q), device=q.device)
    lse = functional.similarity_lse(q, k, scale=1.0 / temperature, x_id=ids, y_id=ids)
    positive = (q.to(lse.dtype) * k.to(lse.dtype)).sum(1) / temperature
    return F.softplus(lse - positive, threshold=40.0).mean()


def eager_info_nce(z0, z1, temperature=0.1):
    q, k = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    s = (q @ k.T).to(torch.promote_types(q.dtype, torch.float32)) / temperature
    return F.cross_entropy(s, torch.arange(len(q), device=q.device))


# 4U: forward U, backward 3U where the matrix is made again; eager PyTorch, which stores it, needs 3U.
INFO_NCE = OpCase(
    "info_nce",
    two_views,
    info_nce_rows,
    eager_info_nce,
    flops=lambda s: 4 * 2 * s[0] * s[0] * s[1],
    bytes=lambda s, itemsize: 4 * s[0] * s[1] * itemsize,
    shapes=((8, 16), (65, 20)),
)


def _pairs(shape: Shape) -> int:
    return 2 * shape[0]


def _pair_product(shape: Shape) -> tuple[int, int, int]:
    return 2 * shape[0], 2 * shape[0], shape[1]


def _faster(shape: Shape, **times: float) -> tuple[Target, ...]:
    return tuple(Target(shape, "times_faster", value, peer) for peer, value in times.items())


_NT_XENT_TARGETS = (
    *_faster((256, 128), lightly=3, compile=2),
    *_faster((1024, 128), lightly=4.5, compile=2),
    *_faster((4096, 128), lightly=12, eager=6.5, compile=2.8),
    Target((4096, 128), "times_limit", 1.15),
    Target((4096, 128), "peak_mb", 64),
    *_faster((4096, 512), eager=2.8),
    Target((4096, 512), "times_limit", 1.15),
    *_faster((8192, 128), eager=9),
    Target((65536, 64), "runs", 1),
)

_NT_XENT_GPU_TARGETS = (
    *(Target((b, 128), "times_faster", 1, "compile", "bfloat16") for b in (256, 2048, 4096)),
    Target((32768, 128), "ms", 6.6, dtype="bfloat16"),
    Target((32768, 128), "peak_mb", 100, dtype="bfloat16"),
)

WORKS = {
    work.name: work
    for work in (
        Work(
            CASES["nt_xent"],
            "NT-Xent (SimCLR), forward + backward",
            "B x D, N = 2B rows",
            {"temperature": 0.5},
            shapes=((256, 128), (1024, 128), (4096, 128), (4096, 512), (8192, 128)),
            rows=_pairs,
            product=_pair_product,
            quick=((64, 128), (256, 128), (1024, 128)),
            scale=((65536, 64),),
            gpu=((256, 128), (2048, 128), (4096, 128), (16384, 128), (32768, 128), (8192, 512)),
            targets=_NT_XENT_TARGETS,
            gpu_targets=_NT_XENT_GPU_TARGETS,
            truth=pair_truth,
            largest={"cpu": 1 << 18, "cuda": 1 << 18},
        ),
        Work(
            CASES["dcl"],
            "Decoupled contrastive loss, forward + backward",
            "B x D, N = 2B rows",
            {"temperature": 0.1},
            shapes=((256, 128), (1024, 128), (4096, 128)),
            rows=_pairs,
            product=_pair_product,
            quick=((64, 128),),
            gpu=((4096, 128),),
            largest={"cpu": 8192, "cuda": 32768},
        ),
        Work(
            INFO_NCE,
            "In-batch InfoNCE, one direction, forward + backward",
            "B x D",
            {"temperature": 0.1},
            shapes=((1024, 128), (4096, 128), (8192, 128)),
            rows=lambda s: s[0],
            product=lambda s: (s[0], s[0], s[1]),
            quick=((128, 128),),
            gpu=((4096, 128), (16384, 512)),
            gpu_sweeps=4.0,
            largest={"cpu": 8192, "cuda": 32768},
        ),
    )
}


def parse_shape(text: str, work: Work) -> Shape:
    """Reads "4096x128" as (4096, 128)."""
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) != len(work.shapes[0]) or min(shape, default=0) < 1:
        raise ValueError(f"bench: shape must read like {'x'.join(map(str, work.shapes[0]))} ({work.axes}), got {text!r}")
    return shape


def shape_name(shape: Shape) -> str:
    return "x".join(map(str, shape))
