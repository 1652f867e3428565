"""A small vision transformer (Dosovitskiy et al. 2021).

Its attributes and state keys have timm's names, so that the masked methods take it or a timm ``VisionTransformer``.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice, check_whole

from ._block import Block, check_heads, init_linear
from ._checks import check_flags, check_positive, check_widths
from ._image_checks import check_images, pair_of
from ._positions import resized_positions, sine_positions
from ._timm import image_shape, run_blocks


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
            tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], 1)
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
