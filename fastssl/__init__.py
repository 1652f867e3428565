"""fastssl: fused kernels for self-supervised learning. Importing it compiles nothing and touches no GPU."""

from ._version import __version__

from . import functional, loss
from .functional import dcl, nt_xent, similarity_lse

__all__ = ["dcl", "functional", "loss", "nt_xent", "similarity_lse"]
