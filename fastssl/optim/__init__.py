"""Optimizers of the recipes, in one or two launches a step, with averages of the parameters in the same pass."""

from .adamw import AdamW
from .lars import LARS
from .sparse_adam import SparseAdam

__all__ = ["LARS", "AdamW", "SparseAdam"]
