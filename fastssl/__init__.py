"""fastssl: fused kernels for self-supervised learning. Importing it compiles nothing and touches no GPU."""

from . import functional, loss, methods
from ._version import __version__
from .functional import dcl, nt_xent, similarity_lse

__all__ = ["__version__", "dcl", "functional", "loss", "methods", "nt_xent", "similarity_lse"]
