"""SIGReg and LeJEPA's loss: embeddings that are an isotropic Gaussian, seen from many random directions.

    sigreg(z) = mean_{v, s} N sum_k w_k |mean_n exp(i t_k <z_vn, a_s>) - exp(-t_k^2 / 2)|^2         (the test of Epps and Pulley)
    lejepa_loss(z) = lambda sigreg(z) + (1 - lambda) mean_{v, n, d} (z_vnd - c_nd)^2,    c_n = mean of the sample's global views

The operations, and how they avoid a sine and a cosine for each knot, are those of ``fastssl/ops/sigreg.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype, check_dense, check_float_dtype, check_number, check_share, check_whole
from fastssl.distributed.class_sums import sum_without_gradient
from fastssl.ops._register import first_derivative_only, save, saved
from fastssl.ops.sigreg import MOST_KNOTS, MOST_T, sigreg_bwd, sigreg_loss, sigreg_sums

from .parts.arguments import enter, scalar, together
from .parts.directions import check_directions, check_slices, same_directions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined, Ranks


class _Sigreg(torch.autograd.Function):
    """z (V, N, D), directions (D, S) -> the loss. With several processes ``total`` counts all samples and ``name`` is the group's.

    Every process returns the loss of all samples, so the gradient is that of the sum over processes: DistributedDataParallel takes
    the mean.
    """

    @staticmethod
    def forward(ctx, z, directions, t_max, knots, total, name, op):
        sums = sigreg_sums(z, directions, t_max, knots)
        if name is not None:
            sums = sum_without_gradient(sums, name)
        save(ctx, z, directions, sums, total)
        ctx.t_max, ctx.name, ctx.op = t_max, name, op
        return sigreg_loss(sums, total, z.shape[1], t_max)

    @staticmethod
    @first_derivative_only("sigreg")
    def backward(ctx, upstream):
        z, directions, sums, total = saved(ctx)
        if ctx.name is not None:
            upstream = sum_without_gradient(upstream, ctx.name)
        return sigreg_bwd(upstream, sums, total, z, directions, z.shape[1], ctx.t_max), *(None,) * 6


def check_rows(op: str, z: Tensor, least: int = 1) -> Tensor:
    """z (V, N, D), or (N, D) as one view, of which no side is 0 and N is ``least`` at least -> (V, N, D)."""
    check_dense(op, "z", z, "a tensor (V, N, D)")
    check_float_dtype(op, "z", z)
    if z.dim() not in (2, 3) or 0 in z.shape or z.shape[-2] < least:
        rows = "no side of them 0" if least == 1 else f"N at least {least}"
        raise ValueError(f"{op}: z must have shape (N, D) or (V, N, D), {rows}, got {tuple(z.shape)}")
    return z if z.dim() == 3 else z[None]


class Sketch:
    """The part of a call that SIGReg has in every loss: its numbers, which are checked, and its directions."""

    def __init__(self, op: str, slices, knots, t_max):
        self.op = op
        self.slices = check_slices(op, "slices", slices)
        self.knots = check_whole(op, "knots", knots, 2, MOST_KNOTS + 1)
        check_number(op, "t_max", t_max, 0.0)
        if not 0 < t_max <= MOST_T:
            raise ValueError(f"{op}: t_max must be above 0 and at most {MOST_T:g}, got {t_max}")
        self.t_max = float(t_max)

    def meet(self, z: Tensor, directions, generator, seed, group) -> tuple[Joined | None, Tensor]:
        """The processes that compute the loss together, and the directions (D, S), which are the same in all of them."""
        check_directions(self.op, z, directions, generator, seed)
        how = {"slices": self.slices, "knots": self.knots, "t_max": self.t_max, "seed": seed}
        joined = together(self.op, group, z.transpose(0, 1), **how)
        return joined, same_directions(self.op, z, self.slices, directions, generator, seed, joined)

    def loss(self, z: Tensor, joined: Joined | None, directions: Tensor) -> Tensor:
        """z (V, N, D) -> SIGReg."""
        total, name = (None, None) if joined is None else (joined.total, joined.name)
        return _Sigreg.apply(z, directions, self.t_max, self.knots, total, name, self.op)


def sigreg(
    z: Tensor,
    *,
    slices: int = 1024,
    knots: int = 17,
    t_max: float = 3.0,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """Sketched isotropic Gaussian regularisation (SIGReg, Balestriero and LeCun 2025, algorithm 1).

    Each of S random directions shows the N samples of a view as N numbers x. The test of Epps and Pulley compares their empirical
    characteristic function with that of a standard Gaussian at K knots: ``N sum_k w_k ((mean cos(t_k x) - phi_k)^2 + (mean sin(t_k
    x))^2)`` with ``t = linspace(0, t_max, K)``, ``phi = exp(-t^2 / 2)`` and ``w`` twice the weights of the trapezoidal rule times
    ``phi``. The loss is its mean over directions and views. No tensor of size N x S is made.

    Args:
        z: (V, N, D) embeddings of N samples in V views, each view a batch of its own, or (N, D); float32, bfloat16, float16 or
            float64.
        slices: S, the number of random directions, at most 2^20.
        knots: K, from 2 to 1024.
        t_max: the last knot, above 0 and at most 1024.
        directions: (D, S) of the dtype and on the device of z, columns of unit length, in place of random ones; taken as they are.
            They are constants. The same ones in every process of ``group``.
        generator: where a seed for new directions is drawn, on the device of z; None is torch's default one.
        seed: a whole number or one-element int64 tensor on the device of z, such as the step: directions that depend on it alone,
            on every device and in every process. Nothing waits for a GPU.
        group: the processes whose samples are one batch; ``torch.distributed.group.WORLD`` is all of them. Loss and gradients are
            those of one process with the joined batch, uneven batches included. Directions are those of the first process.

    Returns:
        The loss, a float32 scalar (float64 for float64 input), the same in every process of ``group``. It can be differentiated
        once, in z. Phases t x are right to float32 where ``|t x|`` is below 2^29. From there on they lose digits until they
        are arbitrary; loss and gradient are finite for all embeddings whose projections are.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: ``directions`` require a gradient, or the call is inside a ``torch.func`` transform.

    Examples:
        >>> z = torch.randn(2, 512, 16, generator=torch.Generator().manual_seed(0))
        >>> gaussian, collapsed = sigreg(z, seed=0), sigreg(0.0 * z, seed=0)
        >>> round(gaussian.item(), 1), round(collapsed.item())
        (1.3, 206)
    """
    z, directions = enter("sigreg", z, directions)
    z = check_rows("sigreg", z)
    call = Sketch("sigreg", slices, knots, t_max)
    return call.loss(z, *call.meet(z, directions, generator, seed, group))


def lejepa_loss(
    z: Tensor,
    *,
    global_views: int | None = None,
    lambda_param: float = 0.05,
    slices: int = 1024,
    knots: int = 17,
    t_max: float = 3.0,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    group: ProcessGroup | Ranks | None = None,
) -> Tensor:
    """LeJEPA's loss (Balestriero and LeCun 2025, algorithm 2): ``lambda sigreg(z) + (1 - lambda) invariance``.

    The invariance is the mean over views, samples and columns of ``(z_vnd - c_nd)^2``, where the centre c of a sample is the mean
    of its global views. Gradients go to the views and to the centre.

    Args:
        z: (V, N, D) embeddings of V views of N samples, global views first; float32, bfloat16, float16 or float64.
        global_views: how many views are global; None: all of them.
        lambda_param: lambda, in [0, 1].
        slices: S, the number of random directions.
        knots: K, from 2 to 1024.
        t_max: the last knot, above 0 and at most 1024.
        directions: (D, S), as in ``sigreg``.
        generator: as in ``sigreg``.
        seed: as in ``sigreg``.
        group: as in ``sigreg``. The mean over processes of losses and gradients is that of one process with the joined batch.

    Returns:
        The loss, a float32 scalar (float64 for float64 input). It can be differentiated once, in z.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: as in ``sigreg``.

    Examples:
        >>> z = torch.randn(1, 512, 16, generator=torch.Generator().manual_seed(0)).expand(2, 512, 16)
        >>> round(lejepa_loss(z, seed=0).item() / sigreg(z, seed=0).item(), 3)  # equal views
        0.05
    """
    op = "lejepa_loss"
    z, directions = enter(op, z, directions)
    check_views(op, z)
    global_views = check_global(op, global_views, z)
    check_share(op, "lambda_param", lambda_param)
    share = scalar(lambda_param, z)
    call = Sketch(op, slices, knots, t_max)
    known = call.meet(z, directions, generator, seed, group)
    sketched, joined = call.loss(z, *known), known[0]
    return share * sketched + (1.0 - share) * invariance(z, global_views, joined)


def check_views(op: str, z: Tensor, least: int = 1) -> None:
    """z (V, N, D), of which no side is 0 and N is ``least`` at least."""
    if isinstance(z, Tensor) and z.dim() != 3:
        raise ValueError(f"{op}: z must have shape (V, N, D), got {tuple(z.shape)}")
    check_rows(op, z, least)


def check_global(op: str, global_views: int | None, z: Tensor) -> int:
    """The number of global views, all by default."""
    return z.shape[0] if global_views is None else check_whole(op, "global_views", global_views, 1, z.shape[0] + 1)


def invariance(z: Tensor, global_views: int, joined: Joined | None) -> Tensor:
    """Mean squared distance of all views (V, N, D) from the mean of the first ones; of all processes' samples where joined."""
    wide = z.to(accumulator_dtype(z))
    error = (wide - wide[:global_views].mean(0)).square()
    return error.mean() if joined is None else joined.mean(error.sum(), z.shape[0] * z.shape[2])
