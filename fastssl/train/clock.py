"""How long a run has trained: the seconds at the end of each epoch.

A checkpoint holds them beside the history and not in it: the history of a resumed run is, bit for bit, that of a run that was not
interrupted.
"""

import math
import time
from typing import Any

SECONDS = "seconds"  # in a checkpoint


def known_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def seconds_of(checkpoint: dict) -> list[float | None]:
    """For each row of a run's history the seconds of training up to the end of its epoch.

    Args:
        checkpoint: what ``torch.load`` reads from ``last.ckpt``.

    Returns:
        As many numbers as the history has rows; ``None`` for each where the run was begun by a version that noted no times.

    Examples:
        >>> seconds_of({"fastssl": {"history": [{}, {}]}, "seconds": {"epochs": [0.0, 2.5], "spent": 2.5}})
        [0.0, 2.5]
        >>> seconds_of({"fastssl": {"history": [{}, {}]}})
        [None, None]
    """
    rows, stored = len(checkpoint["fastssl"]["history"]), checkpoint.get(SECONDS)
    epochs = stored.get("epochs") if isinstance(stored, dict) else None
    if not isinstance(epochs, list) or len(epochs) != rows or not all(map(known_seconds, epochs)):
        return [None] * rows
    return epochs


class Clock:
    """Counts the seconds that a run trains, without those of scores, pictures and checkpoints.

    Args:
        checkpoint: of the run that goes on; without it the run begins.
    """

    def __init__(self, checkpoint: dict | None = None):
        self.epochs: list[float | None] = [0.0] if checkpoint is None else seconds_of(checkpoint)
        self.spent = self.epochs[-1]
        self.begun: float | None = None
        stored = None if checkpoint is None else checkpoint.get(SECONDS)
        if self.spent is not None and isinstance(stored, dict) and known_seconds(stored.get("spent")):
            self.spent = stored["spent"]  # also those of the epoch that was interrupted

    def start(self) -> None:
        """The clock runs from now on, if it does not yet."""
        self.begun = time.perf_counter() if self.begun is None else self.begun

    def now(self) -> float | None:
        """The seconds so far; ``None`` where those of the run's beginning are not known."""
        if self.spent is None or self.begun is None:
            return self.spent
        return self.spent + time.perf_counter() - self.begun

    def end_epoch(self) -> None:
        """Stops the clock and notes an epoch."""
        self.spent, self.begun = self.now(), None
        self.epochs.append(self.spent)

    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"epochs": list(self.epochs), "spent": self.now()}
