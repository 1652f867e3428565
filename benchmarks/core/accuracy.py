"""The accuracy check: no implementation is timed before its results agree with float64 on the same inputs.

Our own code may be at most twice as wrong as eager PyTorch in the same dtype (``fastssl.testing.compare``). A peer must be close
enough to compute the same objective (``SAME_OBJECTIVE``); its error is printed beside its time.

The results of a loss are the loss and all gradients. Float64 results come from the eager form where its N x N matrix fits, and
from the formulas below, block by block, where it does not; for very large N the gradients are compared on sampled rows. The
results of an update are compared tensor by tensor. The error of an update is relative to what float64 changed, so a step that does
nothing has an error of 1.

This file imports ``fastssl.testing``, and nothing of ``benchmarks``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.testing.compare import FLOOR, relative_error
from fastssl.testing.updates import State

#: The relative error above which a peer computes something else. float32 leaves room for TF32 matrix products.
SAME_OBJECTIVE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 6e-2}
#: Rows up to which the eager form runs in float64; rows up to which a truth made in blocks covers all gradients; and the number of
#: rows that are sampled beyond.
EAGER_ROWS, FULL_ROWS, SAMPLED_ROWS = 4096, 16384, 256
#: Rows up to which a CPU computes all similarities in float64; beyond, it takes float32, with errors near 1e-7.
DOUBLE_ROWS = 32768
_BLOCK_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Truth:
    """Loss and gradients in float64 on the CPU. ``rows[name]`` lists the gradient's rows that are compared; None: all."""

    loss: Tensor
    grads: dict[str, Tensor]
    rows: dict[str, Tensor | None]


@dataclass(frozen=True)
class Errors:
    """Relative errors of the loss, and of the gradient that is furthest from float64."""

    loss: float
    grad: float


def step(call: Callable, inputs: dict[str, Tensor]) -> Tensor:
    """Runs forward and backward with fresh gradients, and returns the result, detached. A vector result is summed for backward."""
    for tensor in inputs.values():
        tensor.grad = None
    out = call(**inputs)
    (out if out.dim() == 0 else out.sum()).backward()
    return out.detach()


def timed_step(call: Callable, inputs: dict[str, Tensor]) -> None:
    """Runs forward and backward, then drops the gradients, so that each step counts the memory of its own gradients."""
    step(call, inputs)
    for tensor in inputs.values():
        tensor.grad = None


def leaves(inputs: dict[str, Tensor], dtype: torch.dtype | None = None, constant: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Copies of the inputs that require gradients, except those that ``constant`` names."""
    return {name: t.detach().to(dtype or t.dtype, copy=True).requires_grad_(name not in constant) for name, t in inputs.items()}


def eager_truth(call: Callable, inputs: dict[str, Tensor]) -> Truth:
    wide = leaves(inputs, torch.float64, tuple(name for name, t in inputs.items() if not t.requires_grad))
    loss = step(call, wide)
    grads = {name: t.grad.cpu() for name, t in wide.items() if t.requires_grad}
    return Truth(loss.cpu(), grads, dict.fromkeys(grads))


def _row_lse(z: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """log sum_{j != i} exp(scale <z_i, z_j>) of unit rows z (N, D) float64, in blocks.

    Before exp, |scale| is subtracted, which no logit exceeds.
    """
    n, product = len(z), z.to(dtype)
    total = torch.empty(n, dtype=torch.float64, device=z.device)
    block = min(n, max(1, _BLOCK_ELEMENTS // n))
    buffer = torch.empty(block, n, dtype=dtype, device=z.device)
    shift = torch.full((1,), -abs(scale), dtype=dtype, device=z.device)
    for lo in range(0, n, block):
        rows = product[lo : lo + block]
        s = torch.addmm(shift, rows, product.T, alpha=scale, out=buffer[: len(rows)]).exp_()
        s.diagonal(lo).zero_()
        total[lo : lo + block] = s.sum(1)
    return total.log() + abs(scale)


def pair_truth(inputs: dict[str, Tensor], temperature: float, full_rows: int = FULL_ROWS, sampled: int = SAMPLED_ROWS) -> Truth:
    """NT-Xent of z0, z1 (B, D) from its formulas, in O(N) memory.

    G_i = (1 / N tau) (sum_j (p_ij + p_ji) z_j - 2 z_p(i)),  p_ij = exp(s_ij - lse_i),  then the derivative of normalize.
    """
    raw = torch.cat([inputs["z0"], inputs["z1"]]).detach().double()
    z, n, scale = F.normalize(raw, dim=1), len(raw), 1.0 / temperature
    exact = z.is_cuda or n <= DOUBLE_ROWS
    lse = _row_lse(z, scale, torch.float64 if exact else torch.float32)
    partner = torch.arange(n, device=z.device).roll(n // 2)
    loss = (lse - scale * (z * z[partner]).sum(1)).mean()
    generator = torch.Generator().manual_seed(n)
    rows = torch.arange(n) if n <= full_rows else torch.randperm(n, generator=generator)[:sampled].sort().values
    picked = rows.to(z.device)
    gradient = torch.empty(len(rows), z.shape[1], dtype=torch.float64, device=z.device)
    block = max(1, _BLOCK_ELEMENTS // n)
    for lo in range(0, len(rows), block):
        i = picked[lo : lo + block]
        s = (z[i] @ z.T).mul_(scale)
        weight = (s - lse[i, None]).exp_().add_((s - lse[None, :]).exp_())
        weight[torch.arange(len(i), device=z.device), i] = 0.0
        g = (weight @ z - 2.0 * z[partner[i]]) * (scale / n)
        along = (g * z[i]).sum(1, keepdim=True)
        gradient[lo : lo + block] = (g - along * z[i]) / raw[i].norm(dim=1, keepdim=True).clamp_min(1e-12)
    half, gradient = n // 2, gradient.cpu()
    first = rows < half
    kept = {"z0": rows[first], "z1": rows[~first] - half}
    return Truth(loss.cpu(), {"z0": gradient[first], "z1": gradient[~first]}, kept if n > full_rows else dict.fromkeys(kept))


def _pair_gradients(x, y, scale: float, weights: Callable) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dy, dscale and dbias of a loss over pairs; x, y float64.

    ``weights(lo, s)`` gives dloss / ds for the logits s (block, N) of the rows from ``lo`` on.
    """
    dx, dy = torch.empty_like(x), torch.zeros_like(y)
    dscale, dbias = x.new_zeros(()), x.new_zeros(())
    block = max(1, _BLOCK_ELEMENTS // len(y))
    for lo in range(0, len(x), block):
        rows = x[lo : lo + block]
        dots = rows @ y.T
        w = weights(lo, scale * dots)
        dx[lo : lo + block] = scale * (w @ y)
        dy += scale * (w.T @ rows)
        dscale += (w * dots).sum()
        dbias += w.sum()
    return dx, dy, dscale, dbias


def _image_text(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    x, y = (inputs[name].detach().double() for name in ("image", "text"))
    return x, y, float(inputs["logit_scale"].detach())


def clip_truth(inputs: dict[str, Tensor]) -> Truth:
    """CLIP of image, text (N, D) and logit_scale from its formulas, in O(N) memory: W = (p_row + p_column) / 2N - [i = j] / N."""
    x, y, scale = _image_text(inputs)
    n, block = len(x), max(1, _BLOCK_ELEMENTS // len(y))
    row, column = torch.empty_like(x[:, 0]), torch.full_like(y[:, 0], -torch.inf)
    for lo in range(0, n, block):
        s = scale * (x[lo : lo + block] @ y.T)
        row[lo : lo + block] = torch.logsumexp(s, 1)
        column = torch.logaddexp(column, torch.logsumexp(s, 0))

    def weights(lo, s):
        w = ((s - row[lo : lo + block, None]).exp() + (s - column).exp()) / (2 * n)
        w[torch.arange(len(s), device=s.device), torch.arange(lo, lo + len(s), device=s.device)] -= 1.0 / n
        return w

    dx, dy, dscale, _ = _pair_gradients(x, y, scale, weights)
    loss = 0.5 * (row + column).mean() - scale * (x * y).sum(1).mean()
    grads = {"image": dx.cpu(), "text": dy.cpu(), "logit_scale": dscale.cpu()}
    return Truth(loss.cpu(), grads, dict.fromkeys(grads))


def siglip_truth(inputs: dict[str, Tensor]) -> Truth:
    """SigLIP of image, text (N, D), logit_scale and logit_bias from its formulas, in O(N) memory: W = -t sigmoid(-t l) / N."""
    x, y, scale = _image_text(inputs)
    n, bias, losses = len(x), float(inputs["logit_bias"].detach()), []

    def weights(lo, s):
        t = torch.full_like(s, -1.0)
        t[torch.arange(len(s), device=s.device), torch.arange(lo, lo + len(s), device=s.device)] = 1.0
        losses.append(-F.logsigmoid(t * (s + bias)).sum())
        return -t * torch.sigmoid(-t * (s + bias)) / n

    dx, dy, dscale, dbias = _pair_gradients(x, y, scale, weights)
    grads = {"image": dx.cpu(), "text": dy.cpu(), "logit_scale": dscale.cpu(), "logit_bias": dbias.cpu()}
    return Truth(torch.stack(losses).sum().cpu() / n, grads, dict.fromkeys(grads))


def truth_of(workload, shape, inputs: dict[str, Tensor]) -> Truth:
    """Loss and gradients of a workload in float64. Raises ValueError above the size at which that takes too long."""
    rows = workload.rows(shape)
    if workload.truth is not None and rows > EAGER_ROWS:
        return workload.truth(inputs, **workload.constants)
    device = next(iter(inputs.values())).device.type
    if rows > workload.largest[device]:
        raise ValueError(f"{workload.name}: no float64 truth for {rows} rows on {device} (limit {workload.largest[device]})")
    return eager_truth(lambda **t: workload.case.eager(**t, **workload.constants), inputs)


def errors(call: Callable, inputs: dict[str, Tensor], truth: Truth) -> Errors:
    """Relative errors of a call's loss and gradients. A missing gradient is infinitely wrong."""
    loss = relative_error(step(call, inputs).cpu(), truth.loss)
    worst = 0.0
    for name, exact in truth.grads.items():
        got, rows = inputs[name].grad, truth.rows[name]
        if got is None or got.shape != inputs[name].shape:
            return Errors(loss, float("inf"))
        got = got.cpu()
        worst = max(worst, relative_error(got if rows is None else got[rows], exact))
    return Errors(loss, worst)


def verdict(found: Errors, dtype: torch.dtype, eager: Errors | None = None) -> str:
    """What is wrong with these errors; "" where nothing is. The errors of ``eager`` select the strict rule for our own code."""
    for what in ("loss", "grad"):
        error = getattr(found, what)
        limit = SAME_OBJECTIVE[dtype] if eager is None else 2.0 * min(getattr(eager, what), 1.0) + FLOOR[dtype]
        if not error <= limit:
            return f"{what} is {error:.1e} from float64, over {limit:.1e}"
    return ""


def tensors(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def update_errors(before: State, after: State, truth: State) -> dict[str, float]:
    """Name -> |after - truth| / |truth - before| of its worst tensor. A tensor that was not there before counts as zeros.

    Integers are right, 0, or wrong, infinite.
    """
    found = {}
    for name, exact in truth.items():
        exact, got = tensors(exact), tensors(after.get(name, []))
        start = tensors(before[name]) if name in before else [torch.zeros_like(t) for t in exact]
        if [t.shape for t in got] != [t.shape for t in exact]:
            found[name] = float("inf")
            continue
        if not exact[0].is_floating_point():
            found[name] = 0.0 if all(map(torch.equal, got, exact)) else float("inf")
            continue
        moved = ((g.detach().double() - s, t - s) for g, t, s in zip(got, exact, (s.double() for s in start), strict=True))
        found[name] = max(relative_error(*pair) for pair in moved)
    return found


def update_verdict(found: dict[str, float], before: State, dtype: torch.dtype, eager: dict[str, float] | None = None) -> str:
    """What is wrong with the errors of an update; "" where nothing is. The errors of ``eager`` select the strict rule.

    Integers must be exact. A 16-bit copy of the state is judged by its own dtype.
    """
    for name, error in found.items():
        kept = tensors(before[name])[0].dtype if name in before else dtype
        limit = SAME_OBJECTIVE.get(kept, 0.0) if eager is None else 2.0 * min(eager[name], 1.0) + FLOOR.get(kept, 0.0)
        if not error <= limit:
            return f"{name} is {error:.1e} of its change from float64, over {limit:.1e}"
    return ""
