"""Self-supervised methods as thin modules: an encoder, a head, and ``forward(views) -> loss``, usable in any training loop."""

from .byol import BYOL
from .clip import CLIP, SigLIP
from .cmc import CMC
from .cpc import CPC
from .instdisc import InstDisc
from .mean_teacher import MeanTeacher
from .moco import MoCo
from .moco_v3 import MoCoV3
from .nnclr import NNCLR
from .simclr import SimCLR
from .simcse import SimCSE
from .simsiam import SimSiam
from .supcon import SupCon

__all__ = [
    "BYOL",
    "CLIP",
    "CMC",
    "CPC",
    "NNCLR",
    "InstDisc",
    "MeanTeacher",
    "MoCo",
    "MoCoV3",
    "SigLIP",
    "SimCLR",
    "SimCSE",
    "SimSiam",
    "SupCon",
]
