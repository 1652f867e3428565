"""What masked image modelling asks of any vision transformer: that it has these of timm's attributes, ``patch_embed.proj``,
``cls_token``, ``reg_token``, ``pos_embed``, ``norm_pre``, ``blocks``, ``norm``, ``fc_norm``."""

from itertools import chain
from typing import Any, NoReturn, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.functional import embed_visible

#: A module with timm's attributes, which differ from model to model: no type says which of them it has, ``check_backbone`` does.
TimmLike: TypeAlias = Any

#: What may have parameters in such a backbone; head and pooling are not part of the encoder that is trained.
PARTS = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "blocks", "norm", "fc_norm", "attn_pool", "head")


def is_identity(module: nn.Module | None) -> bool:
    return module is None or isinstance(module, nn.Identity)


def prefix_tokens(backbone: TimmLike) -> Tensor | None:
    """Class token and registers (1, P, E), or None."""
    found = [token for name in ("cls_token", "reg_token") if (token := getattr(backbone, name, None)) is not None]
    return torch.cat(found, 1) if found else None


def image_shape(backbone: TimmLike) -> tuple[int, int, int]:
    """(C, H, W) of the images that the backbone was made for."""
    proj, grid = backbone.patch_embed.proj, backbone.patch_embed.grid_size
    return proj.in_channels, grid[0] * proj.kernel_size[0], grid[1] * proj.kernel_size[1]


def check_backbone(op: str, backbone: TimmLike) -> None:
    """Refuses what is no plain vision transformer: its blocks must work on any subset of the tokens."""

    def refuse(what: str) -> NoReturn:
        kind = type(backbone).__name__
        raise ValueError(f"{op}: backbone must be a vision transformer with timm's attributes, got {kind}: {what}")

    for attribute in ("patch_embed", "pos_embed", "cls_token", "num_prefix_tokens", "blocks", "norm"):
        if not hasattr(backbone, attribute):
            refuse(f"it has no {attribute}")
    embed, proj = backbone.patch_embed, getattr(backbone.patch_embed, "proj", None)
    own = {id(p) for part in (proj, getattr(embed, "norm", None)) if part is not None for p in part.parameters()}
    plain = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride and proj.padding == (0, 0) and proj.groups == 1
    if not plain or any(id(p) not in own for p in embed.parameters()):
        refuse("patch_embed must be one convolution whose stride is its kernel")
    if not isinstance(backbone.blocks, (nn.Sequential, nn.ModuleList)):
        refuse("blocks must be a Sequential or a ModuleList")
    others = {name.split(".")[0] for name, _ in backbone.named_parameters()} - set(PARTS)
    if others:
        refuse(f"it has more than the usual parts: {', '.join(sorted(others))}")
    parts = chain(backbone.named_modules(), backbone.named_parameters())
    if getattr(backbone, "rope", None) is not None or any("rel_pos" in n or "relative_position" in n for n, _ in parts):
        refuse("its blocks need the positions of all tokens (relative or rotary)")
    prefix, grid = prefix_tokens(backbone), getattr(embed, "grid_size", None)
    if (0 if prefix is None else prefix.shape[1]) != backbone.num_prefix_tokens:
        refuse(f"num_prefix_tokens is {backbone.num_prefix_tokens}, but cls_token and reg_token are other than these")
    if grid is None:
        refuse("patch_embed.grid_size is not known; make it with img_size")
    length, pos = grid[0] * grid[1], backbone.pos_embed
    if pos is not None and tuple(pos.shape[:2]) not in ((1, length), (1, length + backbone.num_prefix_tokens)):
        refuse(f"pos_embed must have a row for each of {length} patches, got shape {tuple(pos.shape)}")


def full_positions(backbone: TimmLike) -> Tensor | None:
    """Positions (1, P + L, E) of prefix and patches, zeros for a prefix that has none; None where there are none at all."""
    pos, missing = backbone.pos_embed, backbone.num_prefix_tokens
    if pos is None:
        return None
    missing += backbone.patch_embed.grid_size[0] * backbone.patch_embed.grid_size[1] - pos.shape[1]
    return pos if missing == 0 else torch.cat([pos.new_zeros(1, missing, pos.shape[2]), pos], 1)


def embed_patches(backbone: TimmLike, images: Tensor, ids: Tensor, *, positions: bool = True) -> Tensor:
    """images (N, C, H, W), ids (N, K) -> prefix and these patches (N, P + K, E), with their positions or without."""
    proj, norm, prefix = backbone.patch_embed.proj, getattr(backbone.patch_embed, "norm", None), prefix_tokens(backbone)
    pos = full_positions(backbone) if positions else None
    if norm is None or is_identity(norm):
        return embed_visible(images, proj.weight, ids, proj.bias, pos_embed=pos, prefix_tokens=prefix)
    x = norm(embed_visible(images, proj.weight, ids, proj.bias))
    before = backbone.num_prefix_tokens
    if prefix is not None:
        x = torch.cat([prefix.to(x.dtype).expand(len(x), -1, -1), x], 1)
    if pos is None:
        return x
    front = torch.arange(before, device=ids.device).expand(len(ids), -1)
    return x + F.embedding(torch.cat([front, ids + before], 1), pos[0])


def blocks_of(backbone: TimmLike, x: Tensor) -> Tensor:
    """Embedded tokens (N, T, E) -> what the last block gives (N, T, E)."""
    for name in ("pos_drop", "norm_pre"):
        x = getattr(backbone, name, nn.Identity())(x)
    for block in backbone.blocks:
        x = block(x)
    return x


def last_norm(backbone: TimmLike) -> nn.Module:
    """The norm of the last block's tokens: ``fc_norm`` where there is no other norm."""
    return getattr(backbone, "fc_norm", backbone.norm) if is_identity(backbone.norm) else backbone.norm


def run_blocks(backbone: TimmLike, x: Tensor) -> Tensor:
    """Embedded tokens (N, T, E) -> the encoder's output (N, T, E), normalised."""
    return last_norm(backbone)(blocks_of(backbone, x))
