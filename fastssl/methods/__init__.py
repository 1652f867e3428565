"""Self-supervised methods as thin modules: an encoder, a head, and ``forward(views) -> loss``, usable in any training loop."""

from .simclr import SimCLR

__all__ = ["SimCLR"]
