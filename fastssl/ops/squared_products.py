"""Contract of the op under Barlow Twins and VICReg: the sum of squares of x^T y, by the cheaper of two equal forms.

    c = x^T y  (D, D),   total = sum_{i != j} c_ij^2,   diagonal_i = c_ii = sum_a x_ai y_ai                          x, y (N, D)
    covariance:  total from c itself, whose diagonal is set to 0.                             dx = 2g y c^T,  dy = 2g x c
    gram:        total = sum_ab (x x^T)_ab (y y^T)_ab - sum_i c_ii^2                          dx = 2g y y^T x, dy = 2g x x^T y
    both:        what the diagonal adds, dx_ai += w_i y_ai, with w = ddiagonal, and - 2g c_ii in the gram form

Without y the sides are one: x x^T and x^T x are made once, and both gradients are one. With P positions, (N, P, D), c is made for
each position, and totals are (P,). FLOP: the gram form takes 8 N^2 D (4 N^2 D without y), the covariance form 6 N D^2 (4 N D^2).
``gram_is_cheaper`` chooses by the former: N < 3/4 D. A form stores its own matrices, N x N twice or D x D once, and never those of
the other. The products are torch's, in the dtype of the sides and at the precision that it is set to; the diagonal is summed in
the accumulator dtype from the operands of the products. What cancels in the gram form is at most what was added: its c has at most
N - 1 non-zero singular values, so sum_ij c_ij^2 >= (sum_i c_ii)^2 / (N - 1) whatever the data.
"""

import torch
from torch import Tensor

from ._register import define_composite, first_derivative_only, refuse_transforms, save, saved

#: Elements of a product of matrices that are multiplied element by element at once.
BLOCK = 1 << 22


def gram_is_cheaper(rows: int, width: int) -> bool:
    """Whether N x N matrices are taken for N rows of width D in place of D x D ones: N < 3/4 D."""
    return 4 * rows < 3 * width


def _by_position(t: Tensor) -> Tensor:
    """(N, P, D) -> (P, N, D), a view."""
    return t.transpose(0, 1)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for (P, n, k) and (P, k, m), in the dtype that they have whatever autocast says."""
    device = "cpu" if a.device.type == "meta" else a.device.type  # autocast does not know meta
    with torch.autocast(device, enabled=False):
        return torch.bmm(a, b)


def matrices(x: Tensor, y: Tensor | None, all_x: Tensor, all_y: Tensor | None, gram: bool) -> tuple[Tensor, Tensor]:
    """The matrices of one form, of rows (N, P, D) against the rows (M, P, D) of all processes: x all_x^T and y all_y^T (P, N, M),
    or x^T y (P, D, D) and nothing."""
    nothing, other = x.new_empty(0), x if y is None else y
    if not gram:
        return product(x.permute(1, 2, 0), _by_position(other)), nothing
    kx = product(_by_position(x), all_x.permute(1, 2, 0))
    return kx, nothing if y is None or all_y is None else product(_by_position(y), all_y.permute(1, 2, 0))


def diagonal_of(x: Tensor, y: Tensor | None) -> Tensor:
    """c_ii (P, D) of the rows (N, P, D)."""
    return (x * (x if y is None else y)).sum(0)


def sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """sum_nm a_pnm b_pnm (P,) of two (P, N, M), some rows at a time."""
    rows = max(1, BLOCK // max(1, a.shape[0] * a.shape[2]))
    return torch.stack([(p * q).sum((1, 2)) for p, q in zip(a.split(rows, 1), b.split(rows, 1), strict=True)]).sum(0)


def _forward(x, y, gram):
    a, b = matrices(x, y, x, y, gram)
    if gram:
        diagonal = diagonal_of(x, y)
        return sum_of_products(a, a if y is None else b) - diagonal.square().sum(1), diagonal, a, b
    diagonal = take_diagonal(a)
    return sum_of_products(a, a), diagonal, a, b


def take_diagonal(c: Tensor) -> Tensor:
    """The diagonals (P, D) of c (P, D, D), which are set to 0 in place."""
    at = c.diagonal(dim1=1, dim2=2)
    diagonal = at.clone()
    at.zero_()
    return diagonal


def _fake_fwd(x, y, gram):
    n, p, d = x.shape
    a = x.new_empty((p, n, n) if gram else (p, d, d))
    return x.new_empty(p), x.new_empty(p, d), a, x.new_empty((p, n, n) if gram and y is not None else 0)


def gradients(dtotal, ddiagonal, x, y, all_x, all_y, diagonal, a, b, gram) -> tuple[Tensor, Tensor]:
    """dx and dy (N, P, D) of the own rows; without y its share is in dx, and dy is empty."""
    g = 2.0 * dtotal[:, None, None]  # (P, 1, 1)
    w = (ddiagonal - g[:, 0] * diagonal if gram else ddiagonal)[None]  # (1, P, D)

    def gradient(matrix: Tensor, rows: Tensor, other: Tensor, factor: float) -> Tensor:
        made = torch.mul(other, factor * w)  # (N, P, D)
        out = _by_position(made)
        device = "cpu" if x.device.type == "meta" else x.device.type
        with torch.autocast(device, enabled=False):
            out.baddbmm_((factor * g) * matrix, rows) if gram else out.baddbmm_((factor * g) * rows, matrix)
        return made

    if y is None:
        return gradient(a, _by_position(all_x if gram else x), x, 2.0), x.new_empty(0)
    if gram:
        return gradient(b, _by_position(all_x), y, 1.0), gradient(a, _by_position(all_y), x, 1.0)
    return gradient(a.mT, _by_position(y), y, 1.0), gradient(a, _by_position(x), x, 1.0)


def _backward(dtotal, ddiagonal, x, y, diagonal, a, b, gram):
    return gradients(dtotal, ddiagonal, x, y, x, y, diagonal, a, b, gram)


def _fake_bwd(dtotal, ddiagonal, x, y, diagonal, a, b, gram):
    return x.new_empty(x.shape), x.new_empty(0 if y is None else y.shape)


_fwd = define_composite(
    "squared_products_fwd", "(Tensor x, Tensor? y, bool gram) -> (Tensor, Tensor, Tensor, Tensor)", _fake_fwd, _forward
)
_bwd = define_composite(
    "squared_products_bwd",
    "(Tensor dtotal, Tensor ddiagonal, Tensor x, Tensor? y, Tensor diagonal, Tensor a, Tensor b, bool gram) -> (Tensor, Tensor)",
    _fake_bwd,
    _backward,
)


class _SquaredProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gram, op):
        total, diagonal, a, b = _fwd(x, y, gram)
        save(ctx, x, y, diagonal, a, b)
        ctx.gram, ctx.op = gram, op
        return total, diagonal

    @staticmethod
    @first_derivative_only("squared_products")
    def backward(ctx, dtotal, ddiagonal):
        x, y, diagonal, a, b = saved(ctx)
        dx, dy = _bwd(dtotal, ddiagonal, x, y, diagonal, a, b, ctx.gram)
        wants = ctx.needs_input_grad
        return dx if wants[0] else None, dy if wants[1] and y is not None else None, None, None


def squared_products(op: str, x: Tensor, y: Tensor | None, gram: bool) -> tuple[Tensor, Tensor]:
    """x, y (N, P, D) contiguous, float32 or float64, already checked; None: y is x -> total (P,), diagonal (P, D)."""
    refuse_transforms(op, x, y)
    return _SquaredProducts.apply(x, y, gram, op)
