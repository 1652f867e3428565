"""Every public function of fastssl."""

from .loss._common import RowStats
from .loss.clip import clip_loss, siglip_loss
from .loss.cosine import byol_loss, negative_cosine
from .loss.geometry import alignment, soft_nearest_neighbor, uniformity
from .loss.hard import debiased_nt_xent, hard_nt_xent
from .loss.info_nce import info_nce
from .loss.metric import contrastive, contrastive_pairs, lifted_structured, triplet, triplet_batch
from .loss.moco import moco_loss, moco_v3_loss
from .loss.nt_xent import dcl, nt_xent
from .loss.sampled import n_pair, nce, nce_log_z, negative_sampling
from .loss.sup_con import sup_con
from .loss.variants import matryoshka, nearest_neighbor
from .ops.adamw import adamw_
from .ops.ema import ema_update_
from .ops.lars import lars_
from .ops.queue import queue_push_
from .ops.similarity import similarity_lse

__all__ = [
    "RowStats",
    "adamw_",
    "alignment",
    "byol_loss",
    "clip_loss",
    "contrastive",
    "contrastive_pairs",
    "dcl",
    "debiased_nt_xent",
    "ema_update_",
    "hard_nt_xent",
    "info_nce",
    "lars_",
    "lifted_structured",
    "matryoshka",
    "moco_loss",
    "moco_v3_loss",
    "n_pair",
    "nce",
    "nce_log_z",
    "nearest_neighbor",
    "negative_cosine",
    "negative_sampling",
    "nt_xent",
    "queue_push_",
    "siglip_loss",
    "similarity_lse",
    "soft_nearest_neighbor",
    "sup_con",
    "triplet",
    "triplet_batch",
    "uniformity",
]
