"""Masks: which patches or tokens are hidden, and images to patches."""

from fastssl.ops.block_mask import block_mask
from fastssl.ops.mask_ids import MaskIds, mask_ids, num_kept
from fastssl.ops.mask_tokens import mask_tokens

from .blocks import ContextAndTargets, grid_mask, multi_block_mask, tube_mask
from .patches import patchify, unpatchify
from .random import random_masking, random_token_mask
from .spans import span_mask
from .tokens import corrupt_spans, span_lengths

__all__ = [
    "ContextAndTargets",
    "MaskIds",
    "block_mask",
    "corrupt_spans",
    "grid_mask",
    "mask_ids",
    "mask_tokens",
    "multi_block_mask",
    "num_kept",
    "patchify",
    "random_masking",
    "random_token_mask",
    "span_lengths",
    "span_mask",
    "tube_mask",
    "unpatchify",
]
