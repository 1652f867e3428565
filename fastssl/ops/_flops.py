"""FLOPs of the ops that multiply matrices, for ``torch.utils.flop_counter``: the least that the schedules in the op files take.

The counter's module imports Triton, so the formulas are registered when someone else imports it.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

import torch

_COUNTER = "torch.utils.flop_counter"


def _sweep(x, y) -> int:
    """U: one product of x (N, D) with y (M, D)."""
    return 2 * x[0] * y[0] * x[1]


def _forward(x, y, *_, out_shape=None) -> int:
    return x[0] * x[0] * x[1] if y is None else _sweep(x, y)


def _one_pass(x, y, *_, out_shape=None) -> int:
    return 2 * _sweep(x, x if y is None else y)


def _backward(dlse, state, peak, x, y, *rest, out_shape=None) -> int:
    need = rest[-1]
    if y is None:
        return (3 if need[0] else 1) * x[0] * x[0] * x[1]
    return (1 + need[0] + need[1]) * _sweep(x, y)


def _cross_forward(x, y, *_, out_shape=None) -> int:
    return _sweep(x, y)


def _cross_backward(drow, dcolumn, state, peak, kept, x, y, *rest, out_shape=None) -> int:
    need = rest[-1]
    return 2 * (x[0] - kept[0]) * y[0] * x[1] + (need[0] + need[1]) * _sweep(x, y)


def _sigmoid(x, y, *rest, out_shape=None) -> int:
    need = rest[-1]
    return (1 + need[0] + need[1]) * _sweep(x, y)


def _squares(x, y, gram) -> int:
    n, p, d = x
    return p * 2 * n * d * (n * (1 if y is None else 2) if gram else d)


def _squares_forward(x, y, gram, *_, out_shape=None) -> int:
    return _squares(x, y, gram)


def _squares_backward(dtotal, ddiagonal, x, y, diagonal, a, b, gram, *_, out_shape=None) -> int:
    return _squares(x, y, gram) * (1 if gram or y is None else 2)


def _gram_difference(x, y, normalize, negatives, gradient, *_, out_shape=None) -> int:
    b, n, d = x
    return 2 * b * n * n * ((2 if gradient else 1) * d + y[2])


def _cka(x, y, valid, eps, gram, gradient, *_, out_shape=None) -> int:
    (b, n, d), e = x, y[2]
    if gram:
        return 2 * b * n * n * ((2 if gradient else 1) * d + e)
    return 2 * b * n * ((2 if gradient else 1) * d * (d + e) + e * e)


def _projected(z, directions) -> int:
    """One product of z (V, N, D) with directions (D, S)."""
    return 2 * z[0] * z[1] * z[2] * directions[1]


def _sigreg_sums(z, directions, *_, out_shape=None) -> int:
    return _projected(z, directions)


def _sigreg_backward(grad, sums, total, z, directions, *_, out_shape=None) -> int:
    return 2 * _projected(z, directions)


def _sorted_slices(z, directions, quantiles, gradient, out_shape=None) -> int:
    return (2 if gradient else 1) * _projected(z, directions)


def _nearest(rows, count, size, *_, out_shape=None) -> int:
    return rows[0] * size * rows[1]


def _sampled_forward(query, keys, index, scale, eps, gradient, *_, out_shape=None) -> int:
    """2 M E D for the similarities of M queries with E rows each, and as much for the gradient of the queries."""
    return (4 if gradient else 2) * index[0] * index[1] * query[1]


def _sampled_backward(dloss, query, keys, index, *_, out_shape=None) -> int:
    return 2 * index[0] * index[1] * query[1]


def _words_forward(inputs, outputs, input_ids, target_ids, *_, out_shape=None) -> int:
    """Products and pull of each target."""
    return 4 * target_ids[0] * target_ids[1] * inputs[1]


def _words_backward(source, factor, weight, ids, *_, out_shape=None) -> int:
    return 2 * ids[0] * ids[1] * source[1]


FORMULAS = {
    "cka": _cka,
    "gram_difference": _gram_difference,
    "nearest_in_groups": _nearest,
    "sampled_info_nce_fwd": _sampled_forward,
    "sampled_info_nce_bwd": _sampled_backward,
    "squared_products_fwd": _squares_forward,
    "squared_products_bwd": _squares_backward,
    "similarity_fwd": _forward,
    "similarity_one_pass": _one_pass,
    "similarity_bwd": _backward,
    "similarity_limited_fwd": _forward,
    "similarity_limited_bwd": _backward,
    "similarity_cross_fwd": _cross_forward,
    "similarity_cross_bwd": _cross_backward,
    "sigmoid_pair": _sigmoid,
    "sigreg_sums": _sigreg_sums,
    "sigreg_bwd": _sigreg_backward,
    "sorted_slices": _sorted_slices,
    "word_pairs_fwd": _words_forward,
    "word_pairs_rows": _words_backward,
    "word_pairs_table": _words_backward,
}


def _register() -> None:
    counter = sys.modules[_COUNTER]
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(torch.ops.fastssl, name))(formula)


class _WhenImported(MetaPathFinder, Loader):
    """Leaves the import of the counter to Python and registers the formulas after it."""

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register()


if _COUNTER in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenImported())
