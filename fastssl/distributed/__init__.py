"""Rows of all processes, for queues and banks."""

from .gather import gather_rows, world_size

__all__ = ["gather_rows", "world_size"]
