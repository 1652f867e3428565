"""Functions of lightly 1.6 on tokens, masks and patches (``lightly.models.utils``), and ``preprocess`` of its vision transformer.

``compat/lightly.py`` exports them.
"""

from typing import Any

import torch
from torch import Tensor

from fastssl import masking
from fastssl.ops._patches import check_floats, check_ids
from fastssl.ops.embed_visible import embed_visible
from fastssl.ops.gather_tokens import gather_tokens

from .mae import plain_patch_embed, unwatched


def random_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """``fastssl.functional.random_token_mask`` with one ``torch.rand(N, L)``: a seed gives the tokens that lightly gives.

    Args:
        size: (N, L), the class token included.
        mask_ratio: share of the tokens that is masked, in [0, 1].
        mask_class_token: whether token 0 may be masked.
        device: of the result; by default the CPU.

    Returns:
        index_keep (N, K) and index_mask (N, L - K), int64, in the order of the noise.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> index_keep, index_mask = random_token_mask((2, 17), mask_ratio=0.75)
        >>> index_keep.shape, index_mask.shape
        (torch.Size([2, 5]), torch.Size([2, 12]))
    """
    return masking.random_token_mask(size, mask_ratio, mask_class_token, device)


def get_at_index(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens at given places: ``gather_tokens``, or ``torch.gather`` where tokens are no floats.

    Args:
        tokens: (N, L, D).
        index: (N, K) int64.

    Returns:
        (N, K, D).

    Raises:
        TypeError, ValueError: as ``gather_tokens``.

    Examples:
        >>> tokens = torch.arange(6.0).view(1, 3, 2)
        >>> get_at_index(tokens, torch.tensor([[2, 0]]))
        tensor([[[4., 5.],
                 [0., 1.]]])
    """
    if isinstance(tokens, Tensor) and not tokens.is_floating_point():
        return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))
    return gather_tokens(tokens, index)


def set_at_index(tokens: Tensor, index: Tensor, value: Tensor | float) -> Tensor:
    """A copy of the tokens with other values at given places. Differentiable in tokens and value.

    Args:
        tokens: (N, L, D) float.
        index: (N, K) int64. Where an index repeats, any one of its values stays, as in lightly.
        value: (N, K, D) in the dtype of ``tokens``, or a number.

    Returns:
        (N, L, D).

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Examples:
        >>> set_at_index(torch.zeros(1, 3, 2), torch.tensor([[2]]), 1.0)
        tensor([[[0., 0.],
                 [0., 0.],
                 [1., 1.]]])
    """
    op = "set_at_index"
    check_floats(op, "tokens", tokens, "N, L, D")
    check_ids(op, "index", index, tokens.shape[0], "N, K", tokens.shape[1], "tokens", tokens)
    if not isinstance(value, Tensor):
        value = tokens.new_full((), value)
    elif value.shape != (*index.shape, tokens.shape[2]):
        raise ValueError(f"{op}: value must have shape {(*index.shape, tokens.shape[2])}, got {tuple(value.shape)}")
    elif value.dtype != tokens.dtype:
        raise TypeError(f"{op}: tokens and value must have the same dtype, got {tokens.dtype} and {value.dtype}")
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]  # whole rows: half the time of a scatter by elements
    return tokens.index_put((rows, index), value)


def mask_at_index(tokens: Tensor, index: Tensor, mask_token: Tensor) -> Tensor:
    """The tokens with the mask token at given places. Differentiable in both.

    Args:
        tokens: (N, L, D) float. A token that is replaced may be NaN (in lightly, NaN stays).
        index: (N, K) int64.
        mask_token: (1, 1, D) float.

    Returns:
        (N, L, D) in the wider dtype of tokens and mask token.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Examples:
        >>> mask_at_index(torch.zeros(1, 3, 2), torch.tensor([[0, 2]]), torch.ones(1, 1, 2))[0, :, 0]
        tensor([1., 0., 1.])
    """
    op = "mask_at_index"
    check_floats(op, "tokens", tokens, "N, L, D")
    check_ids(op, "index", index, tokens.shape[0], "N, K", tokens.shape[1], "tokens", tokens)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter_(1, index, True)
    return _masked(op, tokens, mask, mask_token)


def mask_bool(tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """The tokens with the mask token where a mask is not 0. Differentiable in tokens and mask token.

    Args:
        tokens: (N, L, D) float.
        mask: (N, L) of any dtype; not 0 where the mask token is to stand.
        mask_token: (1, 1, D) float.

    Returns:
        (N, L, D) in the wider dtype of tokens and mask token.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Examples:
        >>> mask_bool(torch.zeros(1, 3, 2), torch.tensor([[True, False, True]]), torch.ones(1, 1, 2))[0, :, 0]
        tensor([1., 0., 1.])
    """
    op = "mask_bool"
    check_floats(op, "tokens", tokens, "N, L, D")
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{op}: mask must be a tensor {tuple(tokens.shape[:2])}, one entry for each token, got {got}")
    return _masked(op, tokens, mask.to(torch.bool), mask_token)


def _masked(op: str, tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """tokens (N, L, D), mask (N, L) bool, mask_token: D elements -> (N, L, D)."""
    check_floats(op, "mask_token", mask_token, "1, 1, D")
    if mask_token.numel() != tokens.shape[2]:
        raise ValueError(f"{op}: mask_token must have shape (1, 1, {tokens.shape[2]}), got {tuple(mask_token.shape)}")
    return torch.where(mask[:, :, None], mask_token, tokens)


def repeat_token(token: Tensor, size: tuple[int, int]) -> Tensor:
    """Copies of one token for all places of all samples.

    Args:
        token: (1, 1, D) float.
        size: (N, L).

    Returns:
        (N, L, D), a copy.

    Raises:
        TypeError, ValueError: ``token`` is no float tensor of three dimensions.

    Examples:
        >>> repeat_token(torch.ones(1, 1, 8), (2, 5)).shape
        torch.Size([2, 5, 8])
    """
    check_floats("repeat_token", "token", token, "1, 1, D")
    return token.repeat(*size, 1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images as rows of patches: ``fastssl.functional.patchify``.

    Args:
        images: (N, C, H, W) float.
        patch_size: p, which divides H and W.

    Returns:
        (N, L, C p p), the entries of a patch in the order (p, q, c).

    Raises:
        TypeError, ValueError: as ``fastssl.functional.patchify``.

    Examples:
        >>> patchify(torch.rand(2, 3, 8, 8), 4).shape
        torch.Size([2, 4, 48])
    """
    return masking.patchify(images, patch_size)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """Patches back to images: ``fastssl.functional.unpatchify``.

    Args:
        patches: (N, L, C p p) float, L a square number.
        patch_size: p.
        channels: C.

    Returns:
        (N, C, H, W).

    Raises:
        TypeError, ValueError: patches of another number of entries, or an L that is no square.

    Examples:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(unpatchify(patchify(images, 4), 4), images)
        True
    """
    check_floats("unpatchify", "patches", patches, "N, L, P")
    if patches.shape[2] != channels * patch_size**2:
        raise ValueError(f"unpatchify: patches must have {channels * patch_size**2} entries, got {patches.shape[2]}")
    return masking.unpatchify(patches, patch_size)


def normalize_mean_var(x: Tensor, dim: int = -1, eps: float = 1.0e-6) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` along a dimension, with the unbiased variance.

    ``masked_patch_loss`` does this to its targets by itself.

    Args:
        x: float, of any shape.
        dim: the dimension over which mean and variance are taken.
        eps: added to the variance.

    Returns:
        A tensor of the shape of ``x``.

    Examples:
        >>> normalize_mean_var(torch.tensor([1.0, 2.0, 3.0])).round(decimals=3)
        tensor([-1.,  0.,  1.])
    """
    var, mean = torch.var_mean(x, dim=dim, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def vit_preprocess(
    self, images: Tensor, idx_mask: Tensor | None = None, idx_keep: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Method ``preprocess``: images (N, C, H, W) -> tokens with positions (N, P + L, E), or those of idx_keep (N, K, E).

    Where only ``idx_keep`` is given, only its patches are embedded, unless a subclass, a hook, a dropout or a norm could see the
    difference. idx_mask and idx_keep (N, K) int64 in [0, P + L); mask (N, P + L), not 0 = masked.

    TypeError, ValueError: idx_mask and mask both given; as ``mask_at_index``, ``mask_bool``, ``embed_visible``, ``gather_tokens``.
    """
    if idx_mask is not None and mask is not None:
        raise ValueError("preprocess: only one of idx_mask and mask can be given")
    if idx_keep is not None and idx_mask is None and mask is None and _embeds_kept(self, images):
        return _embed_at(self.vit, images, idx_keep)
    tokens = self.prepend_prefix_tokens(self.images_to_tokens(images))
    if idx_mask is not None:
        tokens = mask_at_index(tokens, idx_mask, self.mask_token)
    elif mask is not None:
        tokens = mask_bool(tokens, mask, self.mask_token)
    tokens = self.add_pos_embed(tokens)
    return tokens if idx_keep is None else get_at_index(tokens, idx_keep)


def _embeds_kept(self, images: Tensor) -> bool:
    drop = self.vit.pos_drop
    return (
        type(self).__name__ == "MaskedVisionTransformerTIMM"
        and type(self).__module__.startswith("lightly.")
        and plain_patch_embed(self.vit.patch_embed, images)
        and unwatched(drop)
        and not (drop.training and getattr(drop, "p", 0.0))
    )


def _embed_at(vit: Any, images: Tensor, idx_keep: Tensor) -> Tensor:
    """images (N, C, H, W), idx_keep (N, K) in [0, P + L) -> (N, K, E), prefix tokens wherever they stand in it."""
    prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    before, length = sum(token.shape[1] for token in prefix), vit.patch_embed.num_patches
    check_ids("preprocess", "idx_keep", idx_keep, len(images), "N, K", before + length, "images", images)
    projection, positions = vit.patch_embed.proj, vit.pos_embed
    ids = (idx_keep - before).clamp_min(0)
    tokens = embed_visible(images, projection.weight, ids, projection.bias, pos_embed=positions[:, -length:])
    tokens = tokens.to(torch.promote_types(tokens.dtype, positions.dtype))
    if not prefix:
        return tokens
    front = torch.cat(prefix, 1)
    if not vit.no_embed_class:
        front = front + positions[:, :before]
    for place in range(before):
        tokens = torch.where((idx_keep == place)[:, :, None], front[:, place : place + 1], tokens)
    return tokens
