"""I-JEPA's predictor: a small transformer that tells from the features of some patches what those of other blocks are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import check_dense
from fastssl.functional import multi_block_mask
from fastssl.masking import ContextAndTargets
from fastssl.ops._random import check_generator

from ._block import Block, init_linear
from ._masked import MaskedImages
from ._positions import sine_positions
from ._timm import TimmLike, embed_patches, run_blocks

EPS = 1e-6
BLOCKS = ("num_targets", "target_scale", "target_aspect", "context_scale", "min_keep", "context_keep")


def check_block_options(blocks: Mapping[str, Any] | None) -> None:
    """Refuses what is no mapping with names of ``multi_block_mask``'s options."""
    if blocks is not None and (not isinstance(blocks, Mapping) or not set(blocks) <= set(BLOCKS)):
        got = f"{sorted(map(str, blocks))}" if isinstance(blocks, Mapping) else type(blocks).__name__
        raise TypeError(f"IJEPA: blocks must be a mapping with some of the keys {', '.join(BLOCKS)}, got {got}")


class LatentPredictor(MaskedImages):
    """``MaskedImages`` with a predictor of the features of blocks."""

    predictor_pos_embed: Tensor

    def add_predictor(self, predictor_dim: int, predictor_depth: int, predictor_heads: int) -> None:
        """Gives the method, which has its backbone by then, the layers of its predictor."""
        width = self.backbone.patch_embed.proj.out_channels
        self.predictor_embed = nn.Linear(width, predictor_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, predictor_dim))
        self.predictor_blocks = nn.ModuleList(Block(predictor_dim, predictor_heads) for _ in range(predictor_depth))
        self.predictor_norm = nn.LayerNorm(predictor_dim, EPS)
        self.predictor_pred = nn.Linear(predictor_dim, width)
        self.register_buffer("predictor_pos_embed", sine_positions(*self.grid, predictor_dim), persistent=False)
        for part in (self.predictor_embed, self.predictor_blocks, self.predictor_pred):
            part.apply(init_linear)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def set_blocks(self, blocks: Mapping[str, Any]) -> None:
        """Keeps the options of ``multi_block_mask``, which is asked whether it takes them for this grid."""
        self.blocks = {"min_keep": max(1, min(10, self.grid[0] * self.grid[1] // 6)), **blocks}
        try:
            multi_block_mask(1, self.grid, **self.blocks, seed=0)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("multi_block_mask:", "IJEPA:", 1)) from None

    def choose(self, rows: int, generator: torch.Generator | None, device: torch.device) -> ContextAndTargets:
        """Context and targets of ``rows`` images, by a seed that the generator of the CPU draws: no GPU is waited for it."""
        check_generator("IJEPA", generator, torch.device("cpu"), by="the seed, which is drawn there")
        seed = int(torch.randint(2**62, (), generator=generator))
        return multi_block_mask(rows, self.grid, **self.blocks, seed=seed, device=device)

    def context_features(self, images: Tensor, context: Tensor) -> Tensor:
        """The encoder's output (N, K, E) for the patches ``context`` (N, K), which are all that it sees."""
        return run_blocks(self.backbone, embed_patches(self.backbone, images, context))[:, self.backbone.num_prefix_tokens :]

    def predict(self, z: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """z (N, K, E) of patches ``context`` (N, K) -> predictions (N, M, T, E) of ``targets`` (N, M, T), each block on its own."""
        (rows, count, size), kept = targets.shape, context.shape[1]
        x = self.predictor_embed(z)
        x = x + self.predictor_pos_embed[context].to(x.dtype)
        asked = (self.mask_token + self.predictor_pos_embed[targets.reshape(rows * count, size)]).to(x.dtype)
        x = torch.cat([x.repeat_interleave(count, 0), asked], 1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_pred(self.predictor_norm(x[:, kept:])).unflatten(0, (rows, count))

    def check_blocks(self, blocks: ContextAndTargets, images: Tensor) -> None:
        """Refuses what is no pair of ids (N, K) and (N, M, T) int64 on the device of the images; their values are not looked at."""
        if not isinstance(blocks, tuple | list) or len(blocks) != 2:
            raise TypeError(f"IJEPA: blocks must be a ContextAndTargets, got {type(blocks).__name__}")
        for part, ids, ndim in zip(("context_ids", "target_ids"), blocks, (2, 3), strict=True):
            check_dense("IJEPA", f"blocks.{part}", ids)
            if ids.dtype != torch.int64 or ids.ndim != ndim or len(ids) != len(images) or ids.device != images.device:
                wanted = f"int64 with {ndim} dimensions, the first {len(images)}, on {images.device}"
                raise ValueError(f"IJEPA: blocks.{part} must be {wanted}, got {ids.dtype} {tuple(ids.shape)} on {ids.device}")


def teacher_tokens(teacher: TimmLike, images: Tensor) -> Tensor:
    """The tokens (N, L, E) of the patches of whole images."""
    every = torch.arange(teacher.patch_embed.grid_size[0] * teacher.patch_embed.grid_size[1], device=images.device)
    x = embed_patches(teacher, images, every.expand(len(images), -1))
    return run_blocks(teacher, x)[:, teacher.num_prefix_tokens :]
