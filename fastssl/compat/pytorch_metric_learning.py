"""``fastssl.compat.pml`` under the library's full name."""

from .pml import NTXentLoss, SupConLoss

__all__ = ["NTXentLoss", "SupConLoss"]
