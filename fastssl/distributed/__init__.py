"""Rows of all processes that train together, for queues, memory banks and losses."""

from .gather import gather_rows, gather_rows_with_grad, world_size

__all__ = ["gather_rows", "gather_rows_with_grad", "world_size"]
