"""Contract of the ops that compare the Gram matrices of two sides: loss and gradient of the first side from one sweep.

x (B, N, D), y (B, N, E)

gram_difference     s_ab = r_a r_b <x_a, x_b>,  t_ab = q_a q_b <y_a, y_b>,  r_a = 1 / |x_a|, q_a = 1 / |y_a|, or 1
                    total = sum e_ab^2,  e = s - t, where negative entries are 0: in neither, in both, or where both are negative
                    dx_a = 4 sum_b m_ab x_b - 4 r_a^2 (sum_b e_ab s_ab) x_a,  m_ab = r_a r_b e_ab
cka                 k = x x^T,  l = y y^T of rows around their mean;  loss = 1 - <k, l> / (|k| |l|)
                    dx = (-2 l + 2 <k, l> / |k|^2 k) x / (|k| |l|)

The lengths of rows stay outside of the products, so that no unit rows are stored. ``gram_difference`` stores no more than a tile:
of many small images the squares of some at a time, of a large one the tiles of one triangle, whose sums count twice. The square is
not expanded into |s|^2 - 2 <s, t> + |t|^2, which would cancel where the sides agree. FLOP: 2 N^2 (D + E) B, and 2 N^2 D B more for
the gradient; N^2 (3D + E) with tiles of one triangle. ``cka`` takes D x D in place of N x N matrices where these take fewer FLOP:
<k, l> = |x^T y|^2. The products are torch's, at the precision that it is set to.
"""

import torch
from torch import Tensor

from ._register import define_composite, first_derivative_only, refuse_transforms, save, saved
from .squared_products import product, sum_of_products

#: What becomes of negative entries: of none, of those of both sides, of those that are negative on both sides and of the second's.
KEEP, CLAMP, CLAMP_SHARED = range(3)
#: Elements of the squares that are made at once, and the side of a tile of a larger square.
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 24}
SIDE = 1024
EPS = 1e-12


def _inverse_lengths(x: Tensor, normalize: bool) -> tuple[Tensor | None, Tensor | None]:
    """1 / max(|x_a|, 1e-12) of the rows (B, N, D), (B, N, 1), and whether a row is longer than that."""
    if not normalize:
        return None, None
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    return 1.0 / length.clamp_min(EPS), length > EPS


def _tile(x: Tensor, r: Tensor | None, rows: slice, columns: slice) -> Tensor:
    s = product(x[:, rows], x[:, columns].mT)
    return s if r is None else s.mul_(r[:, rows]).mul_(r[:, columns].mT)


def _clamped(s: Tensor, t: Tensor, negatives: int) -> tuple[Tensor, Tensor | None]:
    """e, and which entries of s count in the gradient; None: all."""
    if negatives == KEEP:
        return s - t, None
    out = s < 0 if negatives == CLAMP else (s < 0) & (t < 0)
    return (s - t.clamp_min_(0.0)) if negatives == CLAMP_SHARED else s.clamp_min(0.0).sub_(t.clamp_min_(0.0)), ~out


def _difference_of(x: Tensor, y: Tensor, r, q, longer, negatives: int, dx: Tensor | None) -> Tensor:
    """The total of some images, of which the gradient is added to ``dx``, tile by tile."""
    n = x.shape[1]
    side = n if n * n <= AT_ONCE.get(x.device.type, AT_ONCE["cuda"]) else SIDE
    total = x.new_zeros(())
    along = None if r is None or dx is None else torch.zeros_like(r)
    for first in range(0, n, side):
        for second in range(first, n, side):
            rows, columns = slice(first, first + side), slice(second, second + side)
            s, t = _tile(x, r, rows, columns), _tile(y, q, rows, columns)
            e, counted = _clamped(s, t, negatives)
            if counted is not None and negatives == CLAMP_SHARED:
                e.mul_(counted)
            total = total + (1.0 if first == second else 2.0) * e.square().sum()
            if dx is None:
                continue
            if counted is not None:
                e.mul_(counted)
            if along is not None:
                dots = s.mul_(e)
                along[:, rows] += dots.sum(2, keepdim=True)
                if first != second:
                    along[:, columns] += dots.sum(1)[..., None]
                e.mul_(r[:, rows]).mul_(r[:, columns].mT)
            _add_product(dx[:, rows], e, x[:, columns])
            if first != second:
                _add_product(dx[:, columns], e.mT, x[:, rows])
    if dx is not None:
        if along is not None:
            dx.sub_(x * (along * r * r * longer))
        dx.mul_(4.0)
    return total


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    device = "cpu" if a.device.type == "meta" else a.device.type
    with torch.autocast(device, enabled=False):
        out.baddbmm_(a, b)


def _gram_difference(x: Tensor, y: Tensor, normalize: bool, negatives: int, gradient: bool) -> tuple[Tensor, Tensor]:
    r, longer = _inverse_lengths(x, normalize)
    q, _ = _inverse_lengths(y, normalize)
    dx = torch.zeros_like(x) if gradient else None
    total = x.new_zeros(())
    images = max(1, AT_ONCE.get(x.device.type, AT_ONCE["cuda"]) // x.shape[1] ** 2)
    for first in range(0, len(x), images):
        some = slice(first, first + images)
        own, other, long = (None if t is None else t[some] for t in (r, q, longer))
        total = total + _difference_of(x[some], y[some], own, other, long, negatives, None if dx is None else dx[some])
    return total, x.new_empty(0) if dx is None else dx


_difference = define_composite(
    "gram_difference",
    "(Tensor x, Tensor y, bool normalize, int negatives, bool gradient) -> (Tensor, Tensor)",
    lambda x, y, normalize, negatives, gradient: (x.new_empty(()), x.new_empty(x.shape if gradient else 0)),
    _gram_difference,
)


def gram_is_cheaper_for_cka(rows: int, width: int, other: int) -> bool:
    """Whether N x N matrices take fewer FLOP for N rows of widths D and E: N (2D + E) < 2 D^2 + 2 D E + E^2."""
    return rows * (2 * width + other) < 2 * width * (width + other) + other * other


def _centred(x: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return x - x.mean(1, keepdim=True)
    mean = (x * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1.0)
    return (x - mean) * valid


def _cka(x: Tensor, y: Tensor, valid: Tensor | None, eps: float, gram: bool, gradient: bool) -> tuple[Tensor, Tensor]:
    x, y = _centred(x, valid), _centred(y, valid)
    if gram:
        of_x, of_y = product(x, x.mT), product(y, y.mT)
        xx, xy, yy = (sum_of_products(*pair) for pair in ((of_x, of_x), (of_x, of_y), (of_y, of_y)))
    else:
        of_x, of_y = product(x.mT, x), product(y.mT, x)
        xx, xy, yy = (sum_of_products(t, t) for t in (of_x, of_y, product(y.mT, y)))
    scale = xx.clamp_min(eps).rsqrt() * yy.clamp_min(eps).rsqrt()
    loss = 1.0 - xy * scale
    if not gradient:
        return loss, x.new_empty(0)
    of_x.mul_(torch.where(xx >= eps, 2.0 * xy * scale / xx.clamp_min(eps), 0.0)[:, None, None])
    of_y.mul_((-2.0 * scale)[:, None, None])
    if gram:
        return loss, product(of_x.add_(of_y), x)
    dx = product(x, of_x)
    _add_product(dx, y, of_y)
    return loss, dx


_cka_op = define_composite(
    "cka",
    "(Tensor x, Tensor y, Tensor? valid, float eps, bool gram, bool gradient) -> (Tensor, Tensor)",
    lambda x, y, valid, eps, gram, gradient: (x.new_empty(x.shape[0]), x.new_empty(x.shape if gradient else 0)),
    _cka,
)


class _GramDifference(torch.autograd.Function):
    """The gradient is made in the forward, for an upstream gradient of 1."""

    @staticmethod
    def forward(ctx, x, y, normalize, negatives, op):
        total, dx = _difference(x, y, normalize, negatives, True)
        save(ctx, dx, x)  # x, so that a second derivative comes here, where it is refused
        ctx.op = op
        return total

    @staticmethod
    @first_derivative_only("gram_difference")
    def backward(ctx, upstream):
        return saved(ctx)[0] * upstream, *(None,) * 4


class _Cka(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, valid, eps, gram, op):
        loss, dx = _cka_op(x, y, valid, eps, gram, True)
        save(ctx, dx, x)
        ctx.op = op
        return loss

    @staticmethod
    @first_derivative_only("cka")
    def backward(ctx, upstream):
        return saved(ctx)[0] * upstream[:, None, None], *(None,) * 5


def gram_difference(op: str, x: Tensor, y: Tensor, normalize: bool, negatives: int) -> Tensor:
    """x (B, N, D) and a constant y (B, N, E), float32 or float64, already checked -> the total, a scalar."""
    refuse_transforms(op, x)
    if x.requires_grad and torch.is_grad_enabled():
        return _GramDifference.apply(x, y, normalize, negatives, op)
    return _difference(x, y, normalize, negatives, False)[0]


def cka(op: str, x: Tensor, y: Tensor, valid: Tensor | None, eps: float, gram: bool) -> Tensor:
    """x (B, N, D), constants y (B, N, E) and valid (B, N, 1) of 0 and 1 in the dtype of x -> the loss of each image (B,)."""
    refuse_transforms(op, x)
    if x.requires_grad and torch.is_grad_enabled():
        return _Cka.apply(x, y, valid, eps, gram, op)
    return _cka_op(x, y, valid, eps, gram, False)[0]
