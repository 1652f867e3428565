"""What the machine code of the tile kernels promises of their speed: the stored table, and how it is read.

``python -m benchmarks.tune.predict --write`` makes ``predicted_sm90.json`` beside this file: one line for each kernel and width,
for the tile that the kernel usually takes. ``workloads.py`` makes the predicted time of a loss from it.
"""

import json
from pathlib import Path

PATH = Path(__file__).parent / "predicted_sm90.json"
ARCH, NUM_SMS = 90, 132
#: FLOP of a clock in 16 bits, on one multiprocessor.
MATRIX_FLOP = 4096
#: Of D, in the loop of ``similarity_wide``; and clocks until its first slice is there: a launch of a program and two trips to L2.
SLICE, FILL = 64, 1000


def stored() -> list[dict]:
    """The rows that ``--write`` kept."""
    return json.loads(PATH.read_text())["rows"]


def wide_clocks(kernel: str, width: int) -> tuple[float, int]:
    """(clocks of a tile, logits of a tile) of a kernel of ``similarity_wide``."""
    row = next(row for row in stored() if row["kernel"] == kernel)
    return -(-width // SLICE) * row["slice"] + row["epilogue"] + FILL, row["config"][0] * row["config"][1]


def share(kernel: str, width: int) -> float:
    """Predicted share of the matrix rate of a kernel's usual tile, "fwd lean" for example; KeyError where there is none."""
    table = {(row["kernel"], row["width"]): row["share"] for row in stored() if "share" in row}
    return table[kernel, 128 if width <= 128 else 256]
