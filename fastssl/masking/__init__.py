"""Masks: which patches or tokens are hidden, and images to patches."""

from fastssl.ops.mask_ids import MaskIds, mask_ids, num_kept

from .patches import patchify, unpatchify
from .random import random_masking, random_token_mask

__all__ = ["MaskIds", "mask_ids", "num_kept", "patchify", "random_masking", "random_token_mask", "unpatchify"]
