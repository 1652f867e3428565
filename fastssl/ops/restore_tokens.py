"""The op between MAE's encoder and decoder: kept tokens go back to their places, mask tokens elsewhere, and positions are added.

    out_{n,P+l} = (r < K ? x_{n,P+r} : mask_token) + pos_{P+l},   r = ids_restore_{n,l};      out_{n,p} = x_{n,p} + pos_p,  p < P
    dx_{n,P+r} = sum_{l : ids_restore_{n,l} = r} dout_{n,P+l}      dmask_token = sum_{n,l : ids_restore_{n,l} >= K} dout_{n,P+l}

with x (N, P + K, D), ids_restore (N, L) and pos (P + L, D). ids_restore is a permutation of 0 .. L - 1 in each sample, so that
each sum for dx has one term. The forward moves N (2 P + K + L) D elements; the backward reads N (P + L) D and writes N (P + K) D.
The usual form makes four full copies and reads an index of 8 bytes for each element.
"""

from typing import Any

import torch
from torch import Tensor

from fastssl.checks import accumulator_dtype, as_python, check_dense, is_whole, readable

from ._patches import check_floats, check_ids, check_part, dense_rows, trackable
from ._register import _C, define_op, first_derivative_only, new_accumulator, refuse_transforms, save, saved


def _fake_fwd(x, ids_restore, mask_token, pos, prefix):
    return mask_token.new_empty((x.shape[0], prefix + ids_restore.shape[1], x.shape[2]))


def _fake_bwd(dout, ids_restore, kept, prefix, need):
    n, _, d = dout.shape
    dx = dout.new_empty((n, prefix + kept, d)) if need[0] else dout.new_empty((0,))
    return dx, new_accumulator(dout, d) if need[1] else new_accumulator(dout, 0)


_fwd = define_op(
    "restore_tokens_fwd",
    "(Tensor x, Tensor ids_restore, Tensor mask_token, Tensor? pos, SymInt prefix) -> Tensor",
    _fake_fwd,
    "restore_tokens",
)
_bwd = define_op(
    "restore_tokens_bwd",
    "(Tensor dout, Tensor ids_restore, SymInt kept, SymInt prefix, bool[2] need) -> (Tensor, Tensor)",
    _fake_bwd,
    "restore_tokens",
)
_are_permutations: Any = getattr(_C, "are_permutations", None)


class _Restore(torch.autograd.Function):
    """mask_token (D,) and pos (P + L, D) are in the dtype of the result, which x may be narrower than."""

    @staticmethod
    def forward(ctx, x, ids_restore, mask_token, pos, prefix):
        save(ctx, ids_restore)
        ctx.prefix, ctx.kept, ctx.dtype = prefix, x.shape[1] - prefix, x.dtype
        return _fwd(dense_rows(x), ids_restore, mask_token, pos, prefix)

    @staticmethod
    @first_derivative_only("restore_tokens")
    def backward(ctx, dout):
        (ids_restore,) = saved(ctx)
        need_x, _, need_token, need_pos, _ = ctx.needs_input_grad
        dx = dtoken = None
        if need_x or need_token:
            dx, dtoken = _bwd(dense_rows(dout), ids_restore, ctx.kept, ctx.prefix, (need_x, need_token))
        dpos = dout.sum(0, dtype=accumulator_dtype(dout)).to(dout.dtype) if need_pos else None
        return dx.to(ctx.dtype) if need_x else None, None, dtoken.to(dout.dtype) if need_token else None, dpos, None


def restore_tokens(
    x: Tensor, ids_restore: Tensor, mask_token: Tensor, *, num_prefix_tokens: int = 1, pos_embed: Tensor | None = None
) -> Tensor:
    """Makes the input of MAE's decoder (He et al. 2022, section 3): encoded tokens in their places, the mask token in all others.

    Args:
        x: (N, P + K, D): P prefix tokens (class token, registers), then the kept ones; float32, bfloat16, float16 or float64.
        ids_restore: (N, L) int64 of ``mask_ids`` or ``random_masking``, a permutation of 0 .. L - 1 in each row; K is at most L.
            On a GPU and in a compiled graph the values are not looked at: a repeated id repeats its token, whose gradient is the
            sum; a token that no id names has gradient 0; and an id outside 0 .. L - 1 counts as removed.
        mask_token: D elements, such as (1, 1, D).
        num_prefix_tokens: P, 0 or more.
        pos_embed: (1, P + L, D) or (P + L, D), which is added to all tokens.

    Returns:
        (N, P + L, D) in the widest dtype of ``x``, ``mask_token`` and ``pos_embed``. It can be differentiated once in these
        three.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: The call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> import torch
        >>> from fastssl.functional import mask_ids, restore_tokens
        >>> ids = mask_ids((2, 8), 0.75, seed=0)  # K = 2 of L = 8 patches stay
        >>> encoded = torch.rand(2, 1 + 2, 4)  # the class token and the kept patches
        >>> restore_tokens(encoded, ids.ids_restore, torch.zeros(4)).shape
        torch.Size([2, 9, 4])
    """
    op = "restore_tokens"
    refuse_transforms(op, x, mask_token, pos_embed)
    check_floats(op, "x", x, "N, P + K, D", may_be_empty=1)
    n, tokens, width = x.shape
    check_dense(op, "ids_restore", ids_restore, "an int64 tensor (N, L)")
    length = ids_restore.shape[-1] if ids_restore.dim() else 0
    prefix = as_python(num_prefix_tokens)
    if not is_whole(prefix) or not 0 <= prefix <= tokens:
        raise ValueError(f"{op}: num_prefix_tokens must be a whole number in [0, {tokens}], got {prefix!r} (follows from x)")
    if length < 1 or tokens - prefix > length:
        raise ValueError(
            f"{op}: ids_restore must have a column for each of {tokens - prefix} kept tokens, got {tuple(ids_restore.shape)}"
            " (follows from x and num_prefix_tokens)"
        )
    check_ids(op, "ids_restore", ids_restore, n, "N, L", length, "x", x)
    _check_permutation(op, ids_restore)
    check_part(op, "mask_token", mask_token, (width,), "x", "x", x)
    if pos_embed is not None:
        shape = prefix + length, width
        check_part(op, "pos_embed", pos_embed, shape, "x, ids_restore and num_prefix_tokens", "x", x)
    dtype = torch.promote_types(x.dtype, mask_token.dtype)
    if pos_embed is not None:
        dtype = torch.promote_types(dtype, pos_embed.dtype)
        pos_embed = pos_embed.reshape(prefix + length, width).to(dtype).contiguous()
    mask_token = mask_token.reshape(width).to(dtype).contiguous()
    return _Restore.apply(x, trackable(ids_restore.contiguous()), mask_token, pos_embed, prefix)


def _check_permutation(op: str, ids: Tensor) -> None:
    """Refuses rows that do not hold every id of [0, L). It looks on the CPU alone, and writes a byte for each id there."""
    if not readable(ids) or (_are_permutations is not None and _are_permutations(ids)):
        return
    found = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device).scatter_(1, ids, True).all(1)
    if not found.all():
        row = ids[int(found.int().argmin())].tolist()
        raise ValueError(f"{op}: ids_restore must hold a permutation of 0 .. {ids.shape[1] - 1} in each row, got {row}")
