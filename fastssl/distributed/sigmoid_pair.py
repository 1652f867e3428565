"""The pairwise sigmoid loss of the own rows with the columns of all processes: loss and all gradients from one sweep.

    loss = sum_{i of this process} sum_{j of any} v_ij softplus(-t_ij (scale <x_i, y_j> + bias))        as in ops/sigmoid_pair.py

The texts travel, and their gradients go home in the forward already, as in one process the forward leaves the gradients. The sum of
all processes' losses is the loss of the joined batch. 3U FLOP for U = 2 N M D, N own rows and M columns of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import sigmoid_pair as local
from fastssl.ops._operands import SigmoidPair, cut
from fastssl.ops._register import define_composite, first_derivative_only, new_accumulator, save

from .ranks import Joined
from .travel import Route, added, pieces


def _forward(*flat):
    operands, (need, counts, transport, name) = SigmoidPair(*flat[:10]), flat[10:]
    x, y, scale, scale_factor, bias, bias_term, x_id, y_id, x_weight, y_weight = operands
    need_x, need_y, need_scale, need_bias = need
    total = new_accumulator(x).zero_()
    dx = new_accumulator(x, *x.shape).zero_() if need_x else new_accumulator(x, 0)
    dscale, dbias = (new_accumulator(x).zero_() for _ in range(2))
    like = [new_accumulator(x, 0, x.shape[1])] if need_y else []

    def visit(start: int, columns: list[Tensor]) -> list[Tensor]:
        part, part_id, *weight = columns
        sums: list[Tensor] = []
        for piece in pieces(x, transport):
            weights = (cut(x_weight, piece), weight[0]) if weight else (None, None)
            sides = (x[piece], part, scale, scale_factor, bias, bias_term, x_id[piece], part_id)
            loss, own, other, dots, ones = local._op(*sides, *weights, need)
            total.add_(loss)
            if need_x:
                dx[piece] += own
            if need_scale:
                dscale.add_(dots)
            if need_bias:
                dbias.add_(ones)
            sums = added(sums, [other] if need_y else [], like)
        return sums

    columns = [y, y_id] if y_weight is None else [y, y_id, y_weight]
    home = Route("sigmoid_pair", transport, counts.tolist(), name).collect(columns, visit, like)
    none = new_accumulator(x, 0)
    return total, dx, home[0] if need_y else none, dscale if need_scale else none.clone(), dbias if need_bias else none.clone()


_op = define_composite(
    "ranks_sigmoid_pair",
    "(Tensor x, Tensor y, float scale, Tensor? scale_factor, float bias, Tensor? bias_term, Tensor x_id, Tensor y_id, "
    "Tensor? x_weight, Tensor? y_weight, bool[4] need, Tensor counts, str transport, str name) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda *flat: local._fake(*flat[:-3]),
    _forward,
)


class _SigmoidPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, counts, transport, name, *flat):
        x, y, scale, scale_factor, _, bias_term, *_ = flat
        want_x, want_y, _, want_scale, _, want_bias, *_ = ctx.needs_input_grad[4:]
        loss, *gradients = _op(*flat, (want_x, want_y, want_scale, want_bias), counts, transport, name)
        save(ctx, *gradients, x, y, scale_factor, bias_term)
        ctx.scale, ctx.op = scale, op
        return loss

    @staticmethod
    @first_derivative_only("sigmoid_pair")
    def backward(ctx, upstream):
        return *(None,) * 4, *local.gradients(ctx, upstream, ctx.needs_input_grad[4:])


def sigmoid_pair(
    joined: Joined,
    x: Tensor,
    y: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    x_id: Tensor,
    y_id: Tensor,
    x_weight: Tensor | None = None,
    y_weight: Tensor | None = None,
) -> Tensor:
    """``sigmoid_pair`` of ``ops`` for the own rows x (N, D) and the columns y of all processes: the sum over the own rows.

    The upstream gradient of the loss must be the same in every process, as it is where each takes its share of the joined mean.
    """
    operands = local.operands_of(joined.op, x, y, scale, bias, x_id, y_id, x_weight, y_weight)
    if local.wants_gradient(operands):
        return _SigmoidPair.apply(joined.op, *joined.route(), *operands)
    return _op(*operands, (False,) * 4, *joined.route())[0]
