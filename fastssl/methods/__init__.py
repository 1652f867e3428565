"""Self-supervised methods as thin modules: an encoder, a head, and ``forward(views) -> loss``, usable in any training loop."""

from .clip import CLIP, SigLIP
from .cmc import CMC
from .cpc import CPC
from .instdisc import InstDisc
from .nnclr import NNCLR
from .simclr import SimCLR
from .simcse import SimCSE
from .supcon import SupCon

__all__ = ["CLIP", "CMC", "CPC", "NNCLR", "InstDisc", "SigLIP", "SimCLR", "SimCSE", "SupCon"]
