"""A small vision transformer (Dosovitskiy et al. 2021), and what masked image modelling asks of any such backbone.

Its attributes and state keys have timm's names, so that the masked methods take it or a timm ``VisionTransformer``. The
functions below it use these attributes only: ``patch_embed.proj``, ``cls_token``, ``reg_token``, ``pos_embed``, ``norm_pre``,
``blocks``, ``norm``, ``fc_norm``.
"""

from collections import OrderedDict
from itertools import chain
from typing import Any, NoReturn, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_choice, check_dense, check_number, check_whole
from fastssl.functional import embed_visible, num_kept, patchify, unpatchify

from ._common import check_flags, check_positive, check_widths
from ._encoder import check_encoder
from ._positions import resized_positions

#: A module with timm's attributes, which differ from model to model: no type says which of them it has, ``check_backbone`` does.
TimmLike: TypeAlias = Any


def check_heads(name: str, width_name: str, width: int, heads_name: str, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{name}: {width_name} must be a multiple of {heads_name}, got {width} and {heads}")


class Attention(nn.Module):
    """Self-attention over tokens (N, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads("Attention", "width", width, "heads", heads)
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (N, T, D), mask (N, 1, 1, T) bool, True = token that is looked at -> (N, T, D)."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1, self.attn = nn.LayerNorm(width, 1e-6), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, 1e-6)
        layers = {"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def init_linear(module: nn.Module) -> None:
    """For ``apply``: Xavier's uniform weights and zero biases in linear layers, as MAE's."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sine_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed positions (height width, dim) float32 of a grid, row by row; ``dim`` a multiple of 4 (He et al. 2022, appendix A).

    The first half of the channels has the column x, the second the row y, as in MAE, transformers and lightly; each half is
    sin(x w_k), then cos(x w_k), with w_k = 10000^(-k / (dim / 4)), k = 0 .. dim / 4 - 1.
    """
    if dim % 4 or dim < 4:
        raise ValueError(f"sine_positions: dim must be a multiple of 4, got {dim}")
    k = torch.arange(dim // 4, dtype=torch.float64)
    frequency = 10000.0 ** (-k / (dim // 4))
    row, column = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1).float()


def pair_of(name: str, argument: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a side or of a pair of sides, whole numbers of at least 1."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{name}: {argument} must be a side or a pair of sides, got {size}")
    for side in pair:
        check_whole(name, argument, side, 1)
    return pair


def check_images(name: str, images: Tensor, shape: tuple[int, int, int], weight: Tensor) -> None:
    """Refuses what are no float images (N, C, H, W) of ``shape`` (C, H, W) with dtype and device of ``weight``, N at least 1."""
    check_dense(name, "images", images, "a tensor (N, C, H, W)")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or len(images) == 0:
        wanted = f"(N, {', '.join(map(str, shape))})"
        raise ValueError(f"{name}: images must have the shape of the backbone, {wanted}, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"{name}: images must be floating, got {images.dtype}")
    if images.device != weight.device:
        raise ValueError(f"{name}: images must be on the backbone's device {weight.device}, got {images.device}")
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(f"{name}: images must have the backbone's dtype {weight.dtype}, got {images.dtype}")


def check_random(name: str, noise: Tensor | None, generator: torch.Generator | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuses anything but float noise of ``shape`` on the device of ``like``, or a generator, or neither of them."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{name}: generator must be a torch.Generator, got {type(generator).__name__}")
    if noise is None:
        return
    if generator is not None:
        raise ValueError(f"{name}: only one of noise and generator can be given")
    check_dense(name, "noise", noise, f"a tensor {tuple(shape)}")
    if not noise.is_floating_point():
        raise TypeError(f"{name}: noise must be floating, got {noise.dtype}")
    if noise.shape != shape or noise.device != like.device:
        wanted, got = f"{tuple(shape)} and lie on {like.device}", f"{tuple(noise.shape)} on {noise.device}"
        raise ValueError(f"{name}: noise must have shape {wanted}, got {got}")


class PatchEmbed(nn.Module):
    """images (N, C, H, W) -> patches (N, L, width), by a convolution whose stride is its kernel."""

    def __init__(self, image_size: tuple[int, int], patch_size: int, channels: int, width: int):
        super().__init__()
        self.patch_size, self.img_size = (patch_size, patch_size), image_size
        self.grid_size = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A small pre-norm vision transformer: images (N, C, H, W) -> features (N, width).

    Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, equations 1 to 4.

    Args:
        image_size: side H = W in pixels, or (H, W), multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        width: width of the tokens, a multiple of ``heads``.
        depth: number of blocks.
        heads: heads of the attention in each block.
        mlp_ratio: hidden width of a block's MLP, in widths.
        channels: number C of channels.
        class_token: whether a class token stands in front. Its output is the feature, which is otherwise the mean over the patches.
        positions: "learned", or "sine" for the fixed ones of MAE.
        dynamic_img_size: whether images of other sizes, such as small crops, are taken too, with interpolated positions.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or an ``image_size`` that is no multiple of ``patch_size``.

    Examples:
        >>> encoder = VisionTransformer(image_size=8, patch_size=2, width=8, depth=1, heads=2)
        >>> encoder(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        *,
        mlp_ratio: float = 4.0,
        channels: int = 3,
        class_token: bool = False,
        positions: str = "learned",
        dynamic_img_size: bool = False,
    ):
        super().__init__()
        name = type(self).__name__
        check_widths(name, patch_size=patch_size, width=width, depth=depth, heads=heads, channels=channels)
        check_heads(name, "width", width, "heads", heads)
        check_positive(name, mlp_ratio=mlp_ratio)
        check_whole(name, "mlp_ratio times width", int(width * mlp_ratio), 1)
        check_flags(name, class_token=class_token, dynamic_img_size=dynamic_img_size)
        check_choice(name, "positions", positions, ("learned", "sine"))
        size = pair_of(name, "image_size", image_size)
        if any(side % patch_size for side in size):
            raise ValueError(f"{name}: image_size must be multiples of patch_size {patch_size}, got {image_size}")
        self.num_features = self.embed_dim = width
        self.num_prefix_tokens, self.dynamic_img_size = int(class_token), bool(dynamic_img_size)
        self.patch_embed = PatchEmbed(size, patch_size, channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + self.patch_embed.num_patches, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.apply(init_linear)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed.requires_grad_(False)[0, self.num_prefix_tokens :] = sine_positions(*self.patch_embed.grid_size, width)

    def forward_features(self, images: Tensor) -> Tensor:
        """The tokens of images.

        Args:
            images: (N, C, H, W) float, of the transformer's size; with ``dynamic_img_size`` of any size in whole patches.

        Returns:
            (N, P + L, width): P = 1 class token first, or P = 0, then L patches row by row.
        """
        patch, grid = self.patch_embed.patch_size[0], self.patch_embed.grid_size
        if self.dynamic_img_size and isinstance(images, Tensor) and images.ndim == 4:
            grid = (max(1, images.shape[2] // patch), max(1, images.shape[3] // patch))
        check_images(type(self).__name__, images, (image_shape(self)[0], grid[0] * patch, grid[1] * patch), self.pos_embed)
        tokens = self.patch_embed(images)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)
        positions = resized_positions(self.pos_embed, self.num_prefix_tokens, self.patch_embed.grid_size, grid)
        return run_blocks(self, tokens + positions)

    def forward(self, images: Tensor) -> Tensor:
        """The features of images.

        Args:
            images: (N, C, H, W) float, as ``forward_features`` takes them.

        Returns:
            (N, width): the class token, or the mean over the patches.
        """
        tokens = self.forward_features(images)
        return tokens.mean(1) if self.cls_token is None else tokens[:, 0]


# --- any vision transformer with timm's attributes ------------------------------------------------------------------------

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


def check_ratio(name: str, mask_ratio: float, length: int, rounding: str = "keep_floor") -> int:
    """How many of ``length`` patches or units stay. Refuses a ratio that keeps none of them or removes none."""
    check_number(name, "mask_ratio", mask_ratio, 0.0, 1.0)
    keep = num_kept(length, mask_ratio, rounding)
    if not 0 < keep < length:
        raise ValueError(f"{name}: mask_ratio must remove some of {length} patches and keep some, got {mask_ratio} (keeps {keep})")
    return keep


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


def pooled_features(backbone: TimmLike, images: Tensor) -> Tensor:
    """images (N, C, H, W) -> features (N, D), as the backbone pools them, before its classifier."""
    if hasattr(backbone, "forward_head"):
        return backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    return backbone(images)


def pasted(images: Tensor, pred: Tensor, mask: Tensor, patch: tuple[int, int], layout: str) -> tuple[Tensor, Tensor]:
    """images (N, C, H, W), pred (N, L, P), mask (N, L) -> images with removed patches 0, and with the predicted ones there."""
    removed, target = mask[:, :, None] > 0, patchify(images, patch, layout=layout)
    parts = (target.masked_fill(removed, 0.0), torch.where(removed, pred.to(target.dtype), target))
    masked, filled = (unpatchify(part, patch, layout=layout, image_size=(images.shape[2], images.shape[3])) for part in parts)
    return masked, filled


class MaskedImages(nn.Module):
    """What MAE and SimMIM share: a backbone that is known to work, images on the scale that it sees, features."""

    backbone: TimmLike
    patch_size: tuple[int, int]
    grid: tuple[int, int]

    def __init__(self, backbone: TimmLike, pixel_mean: float, pixel_std: float):
        super().__init__()
        self.name = type(self).__name__
        check_encoder(backbone, self.name)
        check_backbone(self.name, backbone)
        check_number(self.name, "pixel_mean", pixel_mean)
        check_positive(self.name, pixel_std=pixel_std)
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.patch_size, self.grid = backbone.patch_embed.proj.kernel_size, tuple(backbone.patch_embed.grid_size)
        self.backbone = backbone

    def scaled(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) of the backbone's size, less ``pixel_mean``, over ``pixel_std``."""
        check_images(self.name, images, image_shape(self.backbone), self.backbone.patch_embed.proj.weight)
        return images if (self.pixel_mean, self.pixel_std) == (0.0, 1.0) else (images - self.pixel_mean) / self.pixel_std

    def embed(self, images: Tensor) -> Tensor:
        """Features of whole images, of which nothing is removed.

        Args:
            images: (N, C, H, W) float, of the backbone's size.

        Returns:
            (N, D), as the backbone pools its tokens: the class token, or their mean.
        """
        return pooled_features(self.backbone, self.scaled(images))
