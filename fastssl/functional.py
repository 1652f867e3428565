"""Every public function of fastssl."""

from .loss.nt_xent import dcl, nt_xent
from .ops.similarity import similarity_lse

__all__ = ["dcl", "nt_xent", "similarity_lse"]
