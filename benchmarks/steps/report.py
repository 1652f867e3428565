"""The tables of ``benchmarks.steps``: one row for each step, and the parts of each step.

    python -m benchmarks.steps.report FILE        prints the tables of a steps.json

Imports ``common`` and ``benchmarks.report``.
"""

import json
import sys
from pathlib import Path

from benchmarks.report.tables import machine_line, markdown, ms_text, number
from benchmarks.steps.common import AFTER, BEFORE

SCHEMA = 1


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)} %"


def _both(entry: dict, cell) -> str:
    """``cell(side)`` of both sides, or "-" where one of them has no value."""
    cells = [cell(entry["sides"][name]) for name in (BEFORE, AFTER)]
    return "-" if None in cells else " -> ".join(cells)


def _megabytes(value: float | None) -> str | None:
    return None if value is None else f"{number(value / 1e3)} GB" if value >= 1e4 else f"{number(value)} MB"


def table(found: dict) -> str:
    """One row for each measured step, before -> after: time, the share of the replaced parts and of the loss, memory."""
    head = ("step", "batch", "time", "times faster", "replaced parts' share", "loss's share", "peak memory", "loss's memory")
    rows = []
    for entry in found["cases"]:
        if "sides" not in entry:
            continue
        ratio = entry["sides"][BEFORE]["ms"] / entry["sides"][AFTER]["ms"]
        rows.append(
            (
                entry["title"],
                str(entry["size"]["batch"]),
                _both(entry, lambda side: ms_text(side["ms"])),
                f"{ratio:.2f}x",
                _both(entry, lambda side: _percent(side["replaced_share"])),
                _both(entry, lambda side: _percent(side["loss_share"])),
                _both(entry, lambda side: _megabytes(side.get("peak_mb"))),
                _both(entry, lambda side: _megabytes(side.get("parts_peak_mb", {}).get("loss"))),
            )
        )
    return markdown(head, rows)


def parts_table(entry: dict) -> str:
    """Where the time of one step goes, before and after."""
    sides = [entry["sides"][name] for name in (BEFORE, AFTER)]
    rows = []
    for part in sides[0]["parts_ms"]:
        cells: list[str] = [part]
        for side in sides:
            cells += [ms_text(side["parts_ms"][part]), _percent(side["parts_ms"][part] / side["ms"])]
            cells += [_megabytes(side.get("parts_peak_mb", {}).get(part)) or "-", side["uses"].get(part, "")]
        rows.append(tuple(cells))
    return markdown(("part", *(f"{what} {side}" for side in (BEFORE, AFTER) for what in ("time", "share", "memory", "code"))), rows)


def _case_report(entry: dict) -> str:
    size = entry["size"]
    head = f"### {entry['title']}, batch {size['batch']}, pieces of {size['micro']}, {entry['dtype']}"
    if "sides" not in entry:
        return f"{head}\n\n{entry['status']}: {entry['reason']}"
    rounds = {side["rounds"] for side in entry["sides"].values()}
    loss = ", ".join(f"{name} {value:.6g}" for name, value in entry["first_loss"].items())
    loss += f". Expected on an H200: {ms_text(entry['expected_ms'])}" if entry["expected_ms"] else ""
    measured = f"First loss: {loss}. {min(rounds)} rounds, load {entry['load']}, {entry['date'][:10]}, commit {entry['commit']}."
    return f"{head}\n\n{measured}\n\n{parts_table(entry)}"


def profiles(found: dict) -> str:
    """The kernels that took most of one step, of each case and side."""
    blocks = []
    for entry in found["cases"]:
        for name, side in entry.get("sides", {}).items():
            lines = [f"{k['ms']:10.2f} ms {100 * k['share']:5.1f} % {k['count']:6d} x {k['name'][:120]}" for k in side["kernels"]]
            blocks.append("\n".join([f"{entry['title']}, batch {entry['size']['batch']}, {name}", *lines]))
    return "\n\n".join(blocks)


def report(found: dict) -> str:
    """Everything in a result, the short table last."""
    return "\n\n".join([machine_line(found["machine"]), *(_case_report(entry) for entry in found["cases"]), table(found)])


def read(path: Path) -> dict:
    found = json.loads(path.read_text())
    if found.get("schema") != SCHEMA or found.get("kind") != "steps":
        raise ValueError(
            f"steps: {path} has schema {found.get('schema')} of {found.get('kind')}, this code reads {SCHEMA} of steps"
        )
    return found


if __name__ == "__main__":
    print(report(read(Path(sys.argv[1]))))
