"""Losses, queues and memory banks over the rows of all processes that train together."""

from .collectives import world_size
from .failures import RanksError
from .gather import gather_rows, gather_rows_with_grad
from .ranks import Ranks

__all__ = ["Ranks", "RanksError", "gather_rows", "gather_rows_with_grad", "world_size"]
