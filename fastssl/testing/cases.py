"""One row for each op or loss: how to make its inputs, the call, the same in eager PyTorch, and its work.

A call takes the differentiable inputs by name and returns one tensor. Eager forms are what a careful user would write; in
float64 they are the truth, in the dtype of the case they are the error to compare with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import functional


@dataclass(frozen=True)
class OpCase:
    """``inputs(shape, dtype, device, seed)`` gives the differentiable tensors; ``ours`` and ``eager`` take them as keywords.

    ``flops(shape)`` is the least work of forward + backward; ``bytes(shape, itemsize)`` inputs read and gradients written once.
    """

    name: str
    inputs: Callable[..., dict[str, Tensor]]
    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    flops: Callable[[tuple], float]
    bytes: Callable[[tuple, int], float]
    shapes: tuple[tuple, ...] = field(default=())

    def shape(self, b: int, d: int) -> tuple[int, ...]:
        """A shape of this case with about b rows of width d: (b, b + 2, d), or (b, d)."""
        return (b, b + 2, d) if len(self.shapes[0]) == 3 else (b, d)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(shape, dtype, device, seed) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64).to(dtype).to(device)


def two_views(shape, dtype=torch.float32, device="cpu", seed=0, noise=0.5) -> dict[str, Tensor]:
    """z0, z1 (B, D): a base plus noise of its own for each view, so that positives are closer than negatives."""
    base, a, b = (torch.randn(shape, generator=_generator(seed + k), dtype=torch.float64) for k in range(3))
    return {"z0": (base + noise * a).to(dtype).to(device), "z1": (base + noise * b).to(dtype).to(device)}


def _unit_rows(shape, dtype, device, seed) -> Tensor:
    return F.normalize(torch.randn(shape, generator=_generator(seed), dtype=torch.float64), dim=1).to(dtype).to(device)


# --- similarity_lse ---------------------------------------------------------------------------------- shape (N, M, D)


def eager_lse(x, y, scale=1.0, x_id=None, y_id=None, y_bias=None) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    s = scale * (x @ y.T).to(wide)
    if y_bias is not None:
        s = s + y_bias
    if x_id is not None:
        s = s.masked_fill(x_id[:, None] == y_id[None, :], -math.inf)
    return torch.logsumexp(s, 1)


def _two_sided_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    n, m, d = shape
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "x": _unit_rows((n, d), dtype, device, seed),
        "y": _unit_rows((m, d), dtype, device, seed + 1),
        "y_bias": randn((m,), wide, device, seed + 2),
        "scale": torch.tensor(10.0, dtype=wide, device=device),
    }


def _ids(x, y):
    """A third of the columns are excluded from each row; row and column counts need not match."""
    rows, columns = (torch.arange(len(t), device=t.device) % 3 for t in (x, y))
    return {"x_id": rows, "y_id": columns}


def _two_sided(lse):
    return lambda x, y, y_bias, scale: lse(x, y, scale=scale, y_bias=y_bias, **_ids(x, y))


def _symmetric_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    return {"x": _unit_rows((shape[0], shape[2]), dtype, device, seed), "scale": _two_sided_inputs(shape, dtype, device)["scale"]}


def _symmetric(lse):
    def call(x, scale):
        ids = torch.arange(len(x), device=x.device) % max(1, len(x) // 2)
        return lse(x, x, scale=scale, x_id=ids, y_id=ids)

    return call


def _one_pass_inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    inputs = _two_sided_inputs(shape, dtype, device, seed)
    return {"x": inputs["x"], "scale": inputs["scale"]}


def _one_pass(lse):
    """The columns are a constant of the call, as a queue is: made from the rows' width, no gradient."""

    def call(x, scale, columns=37):
        angles = torch.arange(columns * x.shape[1], device=x.device, dtype=torch.float64).reshape(columns, -1) ** 2
        y = F.normalize(angles.sin(), dim=1).to(x.dtype)
        return lse(x, y, scale=scale, x_id=torch.arange(len(x), device=x.device), y_id=torch.arange(columns, device=x.device))

    return call


# --- two-view losses ------------------------------------------------------------------------------------- shape (B, D)


def eager_pair_logits(z0, z1, temperature) -> tuple[Tensor, Tensor]:
    """s (2B, 2B) with the diagonal at -inf, and the column of each row's positive."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    s = (z @ z.T).to(torch.promote_types(z.dtype, torch.float32)) / temperature
    s = s.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -math.inf)
    return s, torch.arange(len(z), device=z.device).roll(len(z0))


def eager_nt_xent(z0, z1, temperature=0.5) -> Tensor:
    s, positive = eager_pair_logits(z0, z1, temperature)
    return F.cross_entropy(s, positive)


def eager_dcl(z0, z1, temperature=0.1) -> Tensor:
    s, positive = eager_pair_logits(z0, z1, temperature)
    s_pos = s.gather(1, positive[:, None])
    return (torch.logsumexp(s.scatter(1, positive[:, None], -math.inf), 1) - s_pos[:, 0]).mean()


def _pair_flops(shape) -> float:
    """Forward and backward at the symmetric, triangular minimum: 2U, U = 2 (2B)^2 D."""
    b, d = shape
    return 2 * 2 * (2 * b) ** 2 * d


def _pair_bytes(shape, itemsize) -> float:
    return 2 * 2 * shape[0] * shape[1] * itemsize


def _lse_case(name, inputs, wrap, flops) -> OpCase:
    return OpCase(
        name,
        inputs,
        wrap(functional.similarity_lse),
        wrap(eager_lse),
        flops=lambda s: flops * 2 * s[0] * s[1] * s[2],
        bytes=lambda s, itemsize: 2 * (s[0] + s[1]) * s[2] * itemsize,
        shapes=((1, 1, 1), (5, 3, 2), (64, 64, 32), (70, 70, 24), (130, 257, 33), (300, 100, 130)),
    )


CASES = {
    case.name: case
    for case in (
        _lse_case("similarity_symmetric", _symmetric_inputs, _symmetric, 2),
        _lse_case("similarity_two_sided", _two_sided_inputs, _two_sided, 4),
        _lse_case("similarity_one_pass", _one_pass_inputs, _one_pass, 2),
        *(
            OpCase(name, two_views, ours, eager, _pair_flops, _pair_bytes, (*first, (2, 1), (8, 16), (65, 20), (160, 130)))
            for name, ours, eager, first in (
                ("nt_xent", functional.nt_xent, eager_nt_xent, ((1, 3),)),
                ("dcl", functional.dcl, eager_dcl, ()),  # one pair has no negatives
            )
        ),
    )
}
