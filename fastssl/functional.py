"""Every public function of fastssl."""

from .loss._common import RowStats
from .loss.clip import clip_loss, siglip_loss
from .loss.hard import debiased_nt_xent, hard_nt_xent
from .loss.info_nce import info_nce
from .loss.moco import moco_loss, moco_v3_loss
from .loss.nt_xent import dcl, nt_xent
from .loss.sup_con import sup_con
from .loss.variants import matryoshka, nearest_neighbor
from .ops.similarity import similarity_lse

__all__ = [
    "RowStats",
    "clip_loss",
    "dcl",
    "debiased_nt_xent",
    "hard_nt_xent",
    "info_nce",
    "matryoshka",
    "moco_loss",
    "moco_v3_loss",
    "nearest_neighbor",
    "nt_xent",
    "siglip_loss",
    "similarity_lse",
    "sup_con",
]
