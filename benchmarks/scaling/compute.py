"""Seconds that a GPU needs for N rows against M columns of width D, in 16 bits: predicted, never measured.

They come from the machine code of the tile kernels (``benchmarks.core.predicted``) as the predictions of the workloads do. For one
direction of InfoNCE, U = 2 N M D:

    D <= 256    forward 1 U of "fwd plain"      backward 4 U of "bwd plain"
    D > 256     forward 1 U of "wide rows"      backward 1 U of "wide own" and 2 U of the vendor's product

Once a GPU has result files with predictions beside their times, the median of measured / predicted scales both. The ring's backward
also adds each chunk's gradients to sums in float32, two numbers read and one written: 12 (N + M) D bytes for each chunk.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.core import runner
from benchmarks.core.rates import H100, H200, Rates
from benchmarks.core.workloads import Plan
from benchmarks.report.tables import RESULTS

_FORWARD = Plan((("fwd plain", 1),), chunks=(0, 0), wide=("wide rows",))
_BACKWARD = Plan((("bwd plain", 4),), chunks=(2, 0), wide=("wide own",))
#: Name -> rates.
GPUS = {rates.name: rates for rates in (H100, H200)}
#: Bytes of memory of each GPU, by its data sheet.
MEMORY = {"H100": 80e9, "H200": 141e9}


def measured_scale(name: str, folder: Path = RESULTS) -> float | None:
    """The median of measured / predicted over InfoNCE's cases on this GPU, or None where there are none."""
    ratios = []
    for path in folder.glob("*/info_nce.json"):
        for case in runner.read(path)["cases"]:
            ours = next((entry for entry in case["entries"] if entry["implementation"] == runner.OURS), {})
            ms, _ = runner.device_ms(ours)
            if case.get("predicted_for") == name and case["dtype"] == "bfloat16" and ms is not None:
                ratios.append(ms / case["predicted_ms"])
    return median(ratios) if ratios else None


@dataclass(frozen=True)
class Kernels:
    """The predicted kernels of one GPU; ``scale`` multiplies their times."""

    rates: Rates
    scale: float = 1.0

    @classmethod
    def of(cls, name: str) -> "Kernels":
        """Those of a GPU of ``GPUS``, scaled by its result files where there are any."""
        return cls(GPUS[name], measured_scale(name) or 1.0)

    def forward(self, rows: int, columns: int, width: int) -> float:
        return self._seconds(_FORWARD, rows, columns, width)

    def backward(self, rows: int, columns: int, width: int) -> float:
        return self._seconds(_BACKWARD, rows, columns, width)

    def sums(self, rows: int, columns: int, width: int) -> float:
        """The ring's additions of a chunk's gradients."""
        return 12 * (rows + columns) * width / self.rates.bytes_per_s

    def _seconds(self, plan: Plan, rows: int, columns: int, width: int) -> float:
        return self.scale * 1e-3 * plan.ms((rows, columns, width), 2.0 * rows * columns * width, self.rates)
