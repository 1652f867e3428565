"""Every public function of fastssl, from the files where they are defined."""

from .loss.clip import clip_loss, siglip_loss
from .loss.cosine import byol_loss, negative_cosine
from .loss.dino import dino_loss, ibot_loss, patch_weights, update_center
from .loss.geometry import alignment, soft_nearest_neighbor, uniformity
from .loss.gram import cka, gram_loss
from .loss.hard import debiased_nt_xent, hard_nt_xent
from .loss.info_nce import info_nce
from .loss.koleo import koleo
from .loss.masked_latent import masked_latent_loss
from .loss.metric import contrastive, contrastive_pairs, lifted_structured, triplet, triplet_batch
from .loss.mmcr import mmcr
from .loss.moco import moco_loss, moco_v3_loss
from .loss.nt_xent import dcl, nt_xent
from .loss.parts.row_stats import RowStats
from .loss.redundancy import barlow_twins, vicreg
from .loss.sampled import n_pair, nce, nce_log_z, negative_sampling
from .loss.sampled_info_nce import sampled_info_nce
from .loss.sigreg import lejepa_loss, sigreg
from .loss.sinkhorn import sinkhorn
from .loss.sup_con import sup_con
from .loss.swav import swav_loss
from .loss.tico import tico
from .loss.variants import matryoshka, nearest_neighbor
from .loss.visreg import VISRegTerms, visreg
from .loss.word_pairs import word_pairs
from .masking.blocks import grid_mask, multi_block_mask, tube_mask
from .masking.patches import patchify, unpatchify
from .masking.random import random_masking, random_token_mask
from .masking.spans import span_mask
from .masking.tokens import corrupt_spans, span_lengths
from .ops.adamw import adamw_
from .ops.block_mask import block_mask
from .ops.ema import ema_update_
from .ops.embed_visible import embed_visible
from .ops.gather_tokens import gather_tokens
from .ops.lars import lars_
from .ops.mask_ids import mask_ids, num_kept
from .ops.mask_tokens import mask_tokens
from .ops.patch_loss import masked_patch_loss
from .ops.queue import queue_push_
from .ops.restore_tokens import restore_tokens
from .ops.similarity import similarity_lse
from .ops.soft_cross_entropy import soft_cross_entropy

__all__ = [
    "RowStats",
    "VISRegTerms",
    "adamw_",
    "alignment",
    "barlow_twins",
    "block_mask",
    "byol_loss",
    "cka",
    "clip_loss",
    "contrastive",
    "contrastive_pairs",
    "corrupt_spans",
    "dcl",
    "debiased_nt_xent",
    "dino_loss",
    "ema_update_",
    "embed_visible",
    "gather_tokens",
    "gram_loss",
    "grid_mask",
    "hard_nt_xent",
    "ibot_loss",
    "info_nce",
    "koleo",
    "lars_",
    "lejepa_loss",
    "lifted_structured",
    "mask_ids",
    "mask_tokens",
    "masked_latent_loss",
    "masked_patch_loss",
    "matryoshka",
    "mmcr",
    "moco_loss",
    "moco_v3_loss",
    "multi_block_mask",
    "n_pair",
    "nce",
    "nce_log_z",
    "nearest_neighbor",
    "negative_cosine",
    "negative_sampling",
    "nt_xent",
    "num_kept",
    "patch_weights",
    "patchify",
    "queue_push_",
    "random_masking",
    "random_token_mask",
    "restore_tokens",
    "sampled_info_nce",
    "siglip_loss",
    "sigreg",
    "similarity_lse",
    "sinkhorn",
    "soft_cross_entropy",
    "soft_nearest_neighbor",
    "span_lengths",
    "span_mask",
    "sup_con",
    "swav_loss",
    "tico",
    "triplet",
    "triplet_batch",
    "tube_mask",
    "uniformity",
    "unpatchify",
    "update_center",
    "vicreg",
    "visreg",
    "word_pairs",
]
