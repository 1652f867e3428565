"""Drop-ins for info-nce-pytorch 0.1.4: ``info_nce`` and ``InfoNCE``."""

from fastssl.loss.info_nce import InfoNCELoss, info_nce

__all__ = ["InfoNCE", "info_nce"]


class InfoNCE(InfoNCELoss):
    """``fastssl.loss.InfoNCELoss`` under their name: ``InfoNCE(temperature=0.1, reduction="mean", negative_mode="unpaired")``."""
