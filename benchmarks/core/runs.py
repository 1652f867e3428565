"""Several runs of one case as one case: each figure is the median of the figures that the runs found.

A ratio is that of one run, in which both sides ran in turn; the median is taken of these ratios, not of times that were measured
minutes apart. Imports ``runner``.
"""

import statistics

from benchmarks.core import runner
from benchmarks.core.workloads import Update, Workload


def _medians(found: list[dict]) -> dict:
    """The first of the dicts, with the median wherever all of them have a number of their own."""
    middle = dict(found[0])
    for name, first in found[0].items():
        values = [each.get(name) for each in found]
        if isinstance(first, dict) and all(isinstance(value, dict) for value in values):
            middle[name] = _medians(values)
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            middle[name] = statistics.median(values)
    return middle


def joined(workload: Workload | Update, runs: list[dict]) -> dict:
    """One case of the medians of ``runs``, which are results of ``runner.run_case`` for the same shape, dtype and device.

    An implementation that was not "ok" in one of them is shown as it was there. Memory may be measured in the first run only. The
    date and the commit are those of the last run.
    """
    last = runs[-1]
    if len(runs) == 1:
        return last
    entries = []
    for same in zip(*(run["entries"] for run in runs), strict=True):
        bad = next((entry for entry in same if entry["status"] != "ok"), None)
        entries.append(bad or _medians(list(same)))
    case = _medians([{k: v for k, v in run.items() if k not in ("entries", "targets")} for run in runs])
    case |= {"date": last["date"], "commit": last["commit"], "runs": len(runs), "entries": entries}
    return case | {"targets": runner.targets(workload, case)}
