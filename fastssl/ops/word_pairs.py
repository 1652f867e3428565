"""Contract of the ops of negative sampling over two tables of words, whose gradients are as sparse as the words of a batch.

    h_b      = mean over c of inputs[i_bc]                  i (B, C), C = 1 in skip-gram; sums in float32 (float64 for float64)
    u_bt     = <h_b, outputs[o_bt]>                         o (B, T), T = 1 + K: the target of h_b, then K sampled words
    L_b      = softplus(-u_b0) + sum_{t > 0} softplus(u_bt)                               Mikolov et al. 2013b, eq. 4
    g_bt     = dL_b/du_bt = -sigmoid(-u_b0) for t = 0, else sigmoid(u_bt)                 "slope"
    p_b      = sum_t g_bt outputs[o_bt] / n_b,    n_b = how many of i_bc there are        "pull", dL_b of each input row
    d outputs_r = sum over (b, t) with o_bt = r of dL_b g_bt h_b,      d inputs_r = sum over (b, c) with i_bc = r of dL_b p_b

A negative id is left out: it is no word, adds nothing and does not count in n_b. The forward makes the pull too, while it has the
rows of ``outputs`` at hand. A gradient is the rows that occur, in rising order, and their sums; each sum is made by one thread or
program, in the order of (b, t): no atomics, same bits each time. Nothing is as large as (B, T, D), and nothing as large as a table.

Bytes, in elements: forward B (C + T) D read and 2 B D written; backward B (C + T) D read, most of it from the cache, since h and p
are small, and (R_inputs + R_outputs) D written. FLOP: 4 B T D forward, 2 B (C + T) D backward: the memory decides.
"""

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from ._register import define_op, distinct, first_derivative_only, new_accumulator, refuse_transforms, save, saved


def _fake_fwd(inputs, outputs, input_ids, target_ids):
    pairs, width = input_ids.shape[0], inputs.shape[1]
    shapes = (pairs,), (pairs, width), (pairs, width), tuple(target_ids.shape)
    return tuple(new_accumulator(inputs, *shape) for shape in shapes)


def _fake_rows(source, factor, weight, ids, table, dtype):
    found = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(found), source.new_empty((found, source.shape[1]), dtype=dtype)


_fwd = define_op(
    "word_pairs_fwd",
    "(Tensor inputs, Tensor outputs, Tensor input_ids, Tensor target_ids) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_fwd,
    "word_pairs",
)
_SUMS = "(Tensor source, Tensor? factor, Tensor weight, Tensor ids, SymInt table, ScalarType dtype)"
_rows = define_op("word_pairs_rows", f"{_SUMS} -> (Tensor, Tensor)", _fake_rows, "word_pairs")
_table = define_op(
    "word_pairs_table",
    f"{_SUMS} -> Tensor",
    lambda source, factor, weight, ids, table, dtype: source.new_empty((table, source.shape[1]), dtype=dtype),
    "word_pairs",
)


def _gradient(sparse: bool, shape: tuple, *given) -> Tensor:
    """The gradient of a table of a shape (V, D), as a coalesced sparse tensor or whole."""
    if not sparse:
        return _table(*given)
    rows, values = _rows(*given)
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)


class _WordPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, outputs, input_ids, target_ids, sparse):
        loss, hidden, pull, slope = _fwd(inputs, outputs, input_ids, target_ids)
        save(ctx, hidden, pull, slope, input_ids, target_ids, loss)
        ctx.how = inputs.shape, outputs.shape, inputs.dtype, sparse
        return loss

    @staticmethod
    @first_derivative_only("word_pairs")
    def backward(ctx, weight):
        hidden, pull, slope, input_ids, target_ids, _ = saved(ctx)
        of_inputs, of_outputs, dtype, sparse = ctx.how
        given = None, weight, input_ids, of_inputs[0], dtype
        d_inputs = _gradient(sparse, of_inputs, pull, *given) if ctx.needs_input_grad[0] else None
        given = slope, weight, target_ids, of_outputs[0], dtype
        d_outputs = _gradient(sparse, of_outputs, hidden, *given) if ctx.needs_input_grad[1] else None
        return d_inputs, d_outputs, None, None, None


@_disable_dynamo  # torch.compiler.disable, which would import the compiler here and not at the first call
def _with_sparse_gradients(inputs: Tensor, outputs: Tensor, input_ids: Tensor, target_ids: Tensor) -> Tensor:
    return _WordPairs.apply(inputs, outputs, input_ids, target_ids, True)


def pair_losses(inputs: Tensor, outputs: Tensor, input_ids: Tensor, target_ids: Tensor, sparse: bool) -> Tensor:
    """The losses (B,) of ids (B, C) of rows of inputs (V, D), and (B, T) of rows of outputs (U, D)."""
    refuse_transforms("word_pairs", inputs, outputs)
    if sparse:
        return _with_sparse_gradients(inputs, outputs, input_ids, target_ids)
    return _WordPairs.apply(inputs, distinct(outputs, inputs), input_ids, target_ids, False)
