"""The losses as modules. The functions behind them are in ``fastssl.functional``; ``parts`` holds what several losses share."""

from .clip_modules import ClipLoss, SigLipLoss
from .cosine import BYOLLoss, NegativeCosineSimilarity
from .dino_modules import DINOLoss, IBOTPatchLoss, IBOTPlusPlusPatchLoss, SwaVLoss
from .dino_modules import SwaVLoss as SwAVLoss
from .geometry import SoftNearestNeighborLoss
from .gram import PatchKernelAlignmentLoss
from .info_nce import InfoNCELoss
from .koleo import KoLeoLoss
from .mae import MAELoss
from .metric import ContrastivePairsLoss, LiftedStructuredLoss, TripletLoss
from .mmcr import MMCRLoss
from .moco import MoCoLoss
from .nt_xent_modules import DCLLoss, DCLWLoss, NTXentLoss
from .parts.local_rows import LocalRowsWarning
from .redundancy import BarlowTwinsLoss, VICRegLoss
from .sampled import NPairLoss
from .sigreg_modules import LeJEPALoss, SIGRegLoss, VISRegLoss
from .sup_con import SupConLoss
from .tico import TiCoLoss

__all__ = [
    "BYOLLoss",
    "BarlowTwinsLoss",
    "ClipLoss",
    "ContrastivePairsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "IBOTPlusPlusPatchLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "LeJEPALoss",
    "LiftedStructuredLoss",
    "LocalRowsWarning",
    "MAELoss",
    "MMCRLoss",
    "MoCoLoss",
    "NPairLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "PatchKernelAlignmentLoss",
    "SIGRegLoss",
    "SigLipLoss",
    "SoftNearestNeighborLoss",
    "SupConLoss",
    "SwAVLoss",
    "SwaVLoss",
    "TiCoLoss",
    "TripletLoss",
    "VICRegLoss",
    "VISRegLoss",
]
