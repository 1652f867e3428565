"""fastssl: fused kernels for self-supervised learning. Importing it compiles nothing and touches no GPU."""

__version__ = "0.1.0"

from . import functional, loss
from .functional import dcl, nt_xent, similarity_lse

__all__ = ["dcl", "functional", "loss", "nt_xent", "similarity_lse"]
