"""Drop-ins for info-nce-pytorch 0.1.4: ``info_nce`` and ``InfoNCE``."""

from fastssl.loss.info_nce import InfoNCELoss, info_nce

__all__ = ["InfoNCE", "info_nce"]


class InfoNCE(InfoNCELoss):
    """``fastssl.loss.InfoNCELoss`` under their name: ``InfoNCE(temperature=0.1, reduction="mean", negative_mode="unpaired")``.

    Examples:
        >>> from fastssl.compat.info_nce import InfoNCE
        >>> query, key, negatives = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16), torch.randn(32, 16)
        >>> InfoNCE(temperature=0.1)(query, key, negatives).backward()
        >>> query.grad.shape
        torch.Size([8, 16])
    """
