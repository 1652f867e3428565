"""The patch embedding that sees only the visible patches: they are read straight from the images and go through one product.

    A_{n,P+k} = patch ids_{n,k} of image n, entries in the order (c, p, q)          (N, P + K, C p q); rows of the prefix are 0
    O_{n,P+k} = bias + pos_{P + ids_{n,k}}        O_{n,i} = prefix_i + pos_i, i < P                                (N, P + K, E)
    out = O + A W^T,  W (E, C p q):    dW = dout^T A    dA = dout W, back to its pixels    others: sums of rows of dout

The forward takes 2 N (P + K) E C p q FLOP, and dW as many: at a mask ratio of 0.75 a quarter of what a convolution over all
patches takes. A is kept for the backward. It has 2 % more rows than there are patches, because with zeros for the prefix one
product makes the whole result, without a copy after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.checks import accumulator_dtype, check_dense, readable

from ._patches import check_device, check_floats, check_ids, check_part, dense_rows, patch_grid, trackable
from ._register import define_op, first_derivative_only, refuse_transforms, save, saved
from .gather_tokens import scatter_rows

_patches = define_op(
    "visible_patches_fwd",
    "(Tensor images, Tensor ids, SymInt height, SymInt width, SymInt prefix, ScalarType dtype) -> Tensor",
    lambda images, ids, height, width, prefix, dtype: images.new_empty(
        (images.shape[0], prefix + ids.shape[1], images.shape[1] * height * width), dtype=dtype
    ),
    "embed_visible",
)
_patches_bwd = define_op(
    "visible_patches_bwd",
    "(Tensor dpatches, Tensor ids, SymInt[] shape, SymInt height, SymInt width, SymInt prefix) -> Tensor",
    lambda dpatches, ids, shape, height, width, prefix: dpatches.new_empty(shape),
    "embed_visible",
)
_positions = define_op(
    "visible_positions",
    "(Tensor ids, Tensor? bias, Tensor? pos, Tensor? prefix, SymInt width, ScalarType dtype) -> Tensor",
    lambda ids, bias, pos, prefix, width, dtype: ids.new_empty(
        (ids.shape[0], ids.shape[1] + (0 if prefix is None else prefix.shape[0]), width), dtype=dtype
    ),
    "embed_visible",
)

_CHUNK = 64  # samples whose (L, E) gradients of positions are held at once


class _Embed(torch.autograd.Function):
    """images (N, C, H, W), weight (E, C, p, q), ids (N, K), bias (E,), pos (P + L, E), prefix (P, E); dtype: the weight's."""

    @staticmethod
    def forward(ctx, images, weight, ids, bias, pos, prefix):
        embedding, height, width = weight.shape[0], weight.shape[2], weight.shape[3]
        before = 0 if prefix is None else prefix.shape[0]
        patches = _patches(images, ids, height, width, before, weight.dtype)
        out = _positions(ids, bias, pos, prefix, embedding, weight.dtype)
        front = out[0, :before].clone() if before else None
        out.view(-1, embedding).addmm_(patches.view(-1, patches.shape[2]), weight.reshape(embedding, -1).t())
        if before:
            out[:, :before] = front  # a weight that is not finite makes 0 W NaN
        save(ctx, patches, weight, ids)
        ctx.before, ctx.dtype = before, images.dtype
        ctx.channels, ctx.height, ctx.width = images.shape[1:]  # one by one: dynamo (2.13) keeps no tuple of symbols
        return out

    @staticmethod
    @first_derivative_only("embed_visible")
    def backward(ctx, dout):
        patches, weight, ids = saved(ctx)
        images, weights, _, biases, positions, prefixes = ctx.needs_input_grad
        before, shape = ctx.before, (patches.shape[0], ctx.channels, ctx.height, ctx.width)
        dout = dout.contiguous()
        rows = dout.view(-1, dout.shape[2])
        wide = accumulator_dtype(dout)
        dimages = dweight = dbias = dpos = None
        if images:
            dpatches = (rows @ weight.reshape(weight.shape[0], -1)).view_as(patches)
            dimages = _patches_bwd(dpatches, ids, shape, weight.shape[2], weight.shape[3], before).to(ctx.dtype)
        if weights:
            dweight = (_finite_front(dout, before).view_as(rows).t() @ patches.view(-1, patches.shape[2])).view_as(weight)
        if biases:
            dbias = dout[:, before:].sum((0, 1), dtype=wide).to(dout.dtype)
        dprefix = dout[:, :before].sum(0, dtype=wide) if prefixes or positions else None
        if positions:
            length = shape[2] // weight.shape[2] * (shape[3] // weight.shape[3])
            dpos = torch.cat([dprefix, _by_position(dout[:, before:], ids, length)]).to(dout.dtype)
        return dimages, dweight, None, dbias, dpos, dprefix.to(dout.dtype) if prefixes else None


def _finite_front(dout: Tensor, before: int) -> Tensor:
    """dout (N, P + K, E) for a product with the zeros of A's prefix: the P rows are 0 where they may hold infinity or NaN.

    The host looks at them only where it may; elsewhere these rows are always 0, for the price of a copy.
    """
    if before == 0 or (readable(dout) and bool(dout[:, :before].isfinite().all())):
        return dout
    return F.pad(dout[:, before:], (0, 0, before, 0))


def _by_position(dout: Tensor, ids: Tensor, length: int) -> Tensor:
    """dout (N, K, E) added up over samples by ids (N, K) -> (length, E), float32 or wider, always in the same order."""
    total = dout.new_zeros((length, dout.shape[2]), dtype=accumulator_dtype(dout))
    for part, part_ids in zip(dout.split(_CHUNK), ids.split(_CHUNK), strict=True):
        wide = part.to(accumulator_dtype(part))
        total = total + scatter_rows(wide, part_ids, length).sum(0)
    return total


def embed_visible(
    images: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    *,
    pos_embed: Tensor | None = None,
    prefix_tokens: Tensor | None = None,
) -> Tensor:
    """Embeds the visible patches alone and adds positions and prefix tokens: the input of MAE's encoder.

    The result equals ``conv2d(images, weight, bias, stride=patch)`` as tokens, plus positions, then ``gather_tokens(..., ids)``,
    then the prefix tokens in front (He et al. 2022, section 3), for a fraction K / L of the work.

    Args:
        images: (N, C, H, W) float32, bfloat16, float16 or float64; they are converted to the weight's dtype on the way.
        weight: (E, C, p, q), the weight of a convolution whose stride is its kernel, p x q; H and W are multiples of p and q.
        ids: (N, K) int64 in [0, L), L = H W / (p q): ``ids_keep`` of ``mask_ids``. On a GPU an id out of range gives a zero
            patch.
        bias: (E,).
        pos_embed: (1, P + L, E), or (1, L, E) where the prefix tokens have no positions.
        prefix_tokens: (1, P, E), such as the class token. None: P = 0.

    Returns:
        (N, P + K, E) in the dtype of ``weight``; under autocast in autocast's dtype, with one rounding at the end. It can be
        differentiated once in images, weight, bias, positions and prefix.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: The call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> import torch
        >>> from fastssl.functional import embed_visible, mask_ids
        >>> images, weight = torch.rand(2, 3, 64, 64), torch.rand(8, 3, 16, 16)  # 16 patches an image
        >>> ids = mask_ids((2, 16), 0.75, seed=0)
        >>> embed_visible(images, weight, ids.ids_keep, prefix_tokens=torch.zeros(1, 1, 8)).shape
        torch.Size([2, 5, 8])
    """
    op = "embed_visible"
    refuse_transforms(op, images, weight, bias, pos_embed, prefix_tokens)
    check_floats(op, "images", images, "N, C, H, W")
    check_floats(op, "weight", weight, "E, C, p, q")
    check_device(op, "weight", weight, "images", images)
    if weight.shape[1] != images.shape[1]:
        raise ValueError(f"{op}: weight must have the images' {images.shape[1]} channels, got shape {tuple(weight.shape)}")
    down, across = patch_grid(op, images, (weight.shape[2], weight.shape[3]), "weight")
    length, width = down * across, weight.shape[0]
    check_ids(op, "ids", ids, images.shape[0], "N, K", length, "images", images, "images and weight")
    before, positions = _check_parts(op, images, length, width, bias, pos_embed, prefix_tokens)
    dtype, device_type = weight.dtype, "cpu" if images.is_meta else images.device.type
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    pos = None if pos_embed is None else pos_embed.reshape(positions, width)
    if pos is not None and positions == length and before:
        pos = F.pad(pos, (0, 0, before, 0))
    prefix = None if prefix_tokens is None else prefix_tokens.reshape(before, width)
    bias = None if bias is None else bias.reshape(width)
    weight = weight.to(dtype).contiguous()
    bias, pos, prefix = (t if t is None else t.to(dtype).contiguous() for t in (bias, pos, prefix))
    with torch.autocast(device_type, enabled=False):
        return _Embed.apply(dense_rows(images), trackable(weight), trackable(ids.contiguous()), bias, pos, prefix)


def _check_parts(op: str, images: Tensor, length: int, width: int, bias, pos_embed, prefix_tokens) -> tuple[int, int]:
    """Numbers of prefix tokens, P, and of positions, L or P + L."""
    before = 0
    if bias is not None:
        check_part(op, "bias", bias, (width,), "weight", "images", images)
    if prefix_tokens is not None:
        check_dense(op, "prefix_tokens", prefix_tokens, "a float tensor (1, P, {})", width)
        before = prefix_tokens.shape[-2] if prefix_tokens.dim() > 1 else 1
        check_part(op, "prefix_tokens", prefix_tokens, (before, width), "weight", "images", images)
    positions = before + length
    if pos_embed is not None:
        check_dense(op, "pos_embed", pos_embed, "a float tensor (1, {}, {})", positions, width)
        if pos_embed.dim() > 1 and pos_embed.shape[-2] == length:
            positions = length
        by = "weight, images and prefix_tokens"
        check_part(op, "pos_embed", pos_embed, (positions, width), by, "images", images)
    return before, positions
