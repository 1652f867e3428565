"""Losses as modules; the functions behind them are in ``fastssl.functional``."""

from .clip import ClipLoss, SigLipLoss
from .info_nce import InfoNCELoss
from .moco import MoCoLoss
from .nt_xent import DCLLoss, DCLWLoss, NTXentLoss
from .sup_con import SupConLoss

__all__ = ["ClipLoss", "DCLLoss", "DCLWLoss", "InfoNCELoss", "MoCoLoss", "NTXentLoss", "SigLipLoss", "SupConLoss"]
