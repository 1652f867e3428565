"""What the machine code of the tile kernels promises of their speed: the stored table, and how it is read.

``python -m benchmarks.tune.predict --write`` makes ``predicted_sm90.json`` beside this file: one line for each kernel and width,
for the tile that the kernel usually takes. ``workloads.py`` makes the predicted time of a loss from it. Imports nothing of
``benchmarks``.
"""

import json
from pathlib import Path

PATH = Path(__file__).parent / "predicted_sm90.json"
ARCH, NUM_SMS = 90, 132
#: FLOP of a clock in 16 bits, on one multiprocessor.
MATRIX_FLOP = 4096
#: Columns of D in one slice of the loop of ``similarity_wide``; clocks until the first slice is there: those of the launch of a
#: program and of two trips to L2.
SLICE, FILL = 64, 1000


def stored() -> list[dict]:
    """The lines of the stored table."""
    return json.loads(PATH.read_text())["rows"]


def wide_clocks(kernel: str, width: int) -> tuple[float, int]:
    """(clocks of a tile, logits of a tile) of a kernel of ``similarity_wide``."""
    row = next(row for row in stored() if row["kernel"] == kernel)
    return -(-width // SLICE) * row["slice"] + row["epilogue"] + FILL, row["config"][0] * row["config"][1]


def share(kernel: str, width: int) -> float:
    """The share of the matrix rate that is predicted for a kernel's usual tile, for example for "fwd plain".

    Raises KeyError where the table has no such kernel.
    """
    table = {(row["kernel"], row["width"]): row["share"] for row in stored() if "share" in row}
    return table[kernel, 128 if width <= 128 else 256]
