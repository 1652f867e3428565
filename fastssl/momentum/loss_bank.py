"""The memory bank inside a loss: lightly's rule at the end of the bank, and states with or without one."""

from .queue import MemoryBank


class LossBank(MemoryBank):
    """The bank of ``NTXentLoss``: K rows of width D (None: of the first batch). Rows beyond its end are dropped, as in lightly.

    A state dict may hold the bank or not, whether this one writes it or not, because lightly's loss never does. Loading takes a
    bank that is there and keeps the present one otherwise.
    """

    def __init__(self, size: int, dim: int | None = None, *, gather_distributed: bool = False, persistent: bool = True):
        super().__init__(size, dim, overflow="truncate", gather_distributed=gather_distributed, persistent=persistent)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        kept = self._non_persistent_buffers_set
        self._non_persistent_buffers_set = {name for name in self._buffers if f"{prefix}{name}" not in state_dict}
        try:
            super()._load_from_state_dict(state_dict, prefix, *rest)
        finally:
            self._non_persistent_buffers_set = kept
