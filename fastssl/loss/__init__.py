"""Losses as modules; the functions behind them are in ``fastssl.functional``."""

from .nt_xent import DCLLoss, DCLWLoss, NTXentLoss

__all__ = ["DCLLoss", "DCLWLoss", "NTXentLoss"]
