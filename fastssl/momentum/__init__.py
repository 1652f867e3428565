"""Momentum encoders: the moving average of a model, the schedules of its momentum, queues and banks of keys."""

from .ema import EMA
from .functions import get_ema_multi_avg_fn, update_momentum
from .queue import MemoryBank, MoCoQueue
from .schedules import cosine_schedule, linear_schedule, warmup_schedule

__all__ = [
    "EMA",
    "MemoryBank",
    "MoCoQueue",
    "cosine_schedule",
    "get_ema_multi_avg_fn",
    "linear_schedule",
    "update_momentum",
    "warmup_schedule",
]
