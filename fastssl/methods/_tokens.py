"""Features and patches of whole or masked images: of a vision transformer its tokens, of a convolutional encoder its maps."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._layers import first_layer, refuse_lazy
from ._probe import undisturbed
from ._timm import TimmLike, blocks_of, check_backbone, full_positions, image_shape, is_identity, last_norm, prefix_tokens


def is_transformer(backbone: Any) -> bool:
    return hasattr(backbone, "patch_embed") and hasattr(backbone, "blocks")


def find_grid(name: str, backbone: Any, image_size: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """(C, H, W) of the images whose patches an encoder gives, and the grid (h, w) of these patches.

    A transformer knows both. Another encoder is asked for its maps of zeros (1, C, S, S), S = ``image_size``.
    """
    if is_transformer(backbone):
        check_backbone(name, backbone)
        return image_shape(backbone), tuple(backbone.patch_embed.grid_size)
    wanted = f"{name}: backbone must be a vision transformer, or have forward_features -> maps (N, D, h, w)"
    kind = type(backbone).__name__
    if not hasattr(backbone, "forward_features"):
        raise ValueError(f"{wanted}, got {kind} without forward_features")
    refuse_lazy(backbone, name)
    conv = first_layer(backbone, _ConvNd)
    shape = (3 if conv is None else conv.in_channels, image_size, image_size)
    like = next(backbone.parameters(), torch.empty(0))
    with undisturbed(backbone):
        try:
            maps = backbone.forward_features(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
        except Exception as error:
            raise ValueError(f"{wanted}, got {kind}, which fails on images of image_size {image_size}: {error}") from error
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise ValueError(f"{wanted}, got {kind}, whose features have shape {tuple(getattr(maps, 'shape', ()))}")
    grid = (maps.shape[2], maps.shape[3])
    if image_size % grid[0] or image_size % grid[1]:
        raise ValueError(f"{name}: image_size must be a multiple of the sides of the backbone's maps {grid}, got {image_size}")
    return shape, grid


def mask_token_shape(backbone: Any) -> tuple[int, ...]:
    """Of what stands in for a masked patch: an embedded token (E,) of a transformer, or a colour (C,)."""
    if is_transformer(backbone):
        return (backbone.patch_embed.proj.out_channels,)
    conv = first_layer(backbone, _ConvNd)
    return (3 if conv is None else conv.in_channels,)


def tokens_of(backbone: Any, images: Tensor, mask: Tensor | None = None, token: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """images (N, C, H, W) -> features (N, D) as the encoder pools them, and patches (N, L, D').

    Where ``mask`` (N, h, w) is True, ``token`` stands in for the patch: for its embedding, or for its pixels.
    """
    if is_transformer(backbone):
        return _of_transformer(backbone, images, mask, token)
    if mask is not None and token is not None:
        scale = (images.shape[2] // mask.shape[1], images.shape[3] // mask.shape[2])
        hidden = mask[:, None].repeat_interleave(scale[0], 2).repeat_interleave(scale[1], 3)
        images = torch.where(hidden, token.to(images.dtype)[:, None, None], images)
    maps = backbone.forward_features(images)
    return _pooled(backbone, maps, maps.mean((2, 3))), maps.flatten(2).transpose(1, 2)


def _of_transformer(backbone: TimmLike, images: Tensor, mask: Tensor | None, token: Tensor | None) -> tuple[Tensor, Tensor]:
    x = backbone.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = getattr(backbone.patch_embed, "norm", nn.Identity())(x)
    if mask is not None and token is not None:
        x = torch.where(mask.flatten(1)[..., None], token.to(x.dtype), x)
    prefix, positions, before = prefix_tokens(backbone), full_positions(backbone), backbone.num_prefix_tokens
    if prefix is not None:
        x = torch.cat([prefix.to(x.dtype).expand(len(x), -1, -1), x], 1)
    x = blocks_of(backbone, x if positions is None else x + positions)
    tokens = last_norm(backbone)(x)
    own = tokens.mean(1) if backbone.cls_token is None else tokens[:, 0]
    pooled = _pooled(backbone, x if is_identity(backbone.norm) else tokens, own)
    return pooled, tokens[:, before:]


def _pooled(backbone: Any, output: Tensor, own: Tensor) -> Tensor:
    """timm's pooling of what ``forward_features`` gives, or ``own`` where the encoder has none."""
    return backbone.forward_head(output, pre_logits=True) if hasattr(backbone, "forward_head") else own
