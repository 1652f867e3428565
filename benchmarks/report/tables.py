"""Tables made from the content of result files. A table has no number that is not in one, and a case keeps the date and the commit
that it was measured at."""

from pathlib import Path

from benchmarks.core import runner
from benchmarks.core.workloads import IN_FLOAT32

RESULTS = Path(__file__).resolve().parents[1] / "results"
_COLUMNS = (
    "implementation",
    "ms (p20 to p80)",
    "times fastssl",
    "peak MB",
    "{rate}",
    "of the limit",
    "of the peak",
    "{error} error",
    "note",
)
#: What an entry holds -> the head of its column.
_RATES = {"flop_per_s": "GFLOP/s", "bytes_per_s": "GB/s"}
_ERRORS = {"grad_error": "gradient", "update_error": "update"}
#: Head of a column -> what an entry holds for it; older results, and those of a GPU, have no peak.
_SHARES = {"of the limit": "share_of_limit", "of the peak": "share_of_peak"}
#: Statuses of an implementation that ran; the others are listed under the table.
_TRIED = ("ok", "wrong", "failed", "out of memory")
#: Other implementations of the short tables, with the heads of their columns.
_PEERS = {
    IN_FLOAT32: "fastssl in float32",
    "eager": "eager",
    "compile": "`torch.compile`",
    "lightly": "lightly",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "info_nce_pytorch": "info-nce-pytorch",
    "open_clip": "open_clip",
    "linear_cross_entropy": "torch `linear_cross_entropy`",
    "cut_cross_entropy": "cut-cross-entropy",
    "liger": "Liger",
    "inf_cl": "Inf-CL",
    "siglip_kernel": "siglip-kernel",
    "loop": "a loop, as DINO's",
    "moco_repository": "MoCo repository",
    "mae_repository": "MAE repository",
    "transformers": "transformers",
    "timm": "timm",
    "averaged_model": "torch AveragedModel",
    "fused": "torch fused",
    "update_momentum": "`update_momentum`",
}


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent, more before the point; "" for None."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def ms_text(ms: float) -> str:
    return f"{ms / 1e3:.3g} s" if ms >= 10_000 else f"{number(ms)} ms"


def markdown(head, rows) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _without_empty(head, rows) -> tuple[list, list]:
    """The columns in which some row has a text."""
    kept = [index for index in range(len(head)) if any(row[index] for row in rows)]
    return [head[index] for index in kept], [[row[index] for index in kept] for row in rows]


def shape_text(shape) -> str:
    return " x ".join(map(str, shape))


def _note(entry: dict) -> str:
    parts = [] if entry["status"] == "ok" else [f"{entry['status']}: {entry['reason']}"]
    if "launches" in entry:
        parts.append(f"{entry['launches']} launch" + "es" * (entry["launches"] != 1))
    if "host_ms" in entry:
        parts.append(f"host {ms_text(entry['host_ms'])}")
    if "graph_ms" in entry:
        parts.append(f"CUDA graph {ms_text(entry['graph_ms'])}")
    if "graph_reason" in entry:
        parts.append("no CUDA graph")
    if "peak_reason" in entry:
        parts.append(f"memory: {entry['peak_reason']}")
    return "; ".join(parts)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{number(100 * share, 2)} %"


def entry_row(entry: dict) -> tuple[str, ...]:
    """Cells of one implementation; without a time, every cell of speed is empty."""
    error = next((f"{entry[name]:.1e}" for name in _ERRORS if name in entry), "")
    if "ms" not in entry:
        return (entry["implementation"], *[""] * 6, error, _note(entry))
    times = entry.get("times_ours")
    return (
        entry["implementation"],
        f"{number(entry['ms'])} ({number(entry['p20'])} to {number(entry['p80'])})",
        "" if times is None else f"{times:.2f}x",
        number(entry.get("peak_mb")),
        number(next(entry[name] for name in _RATES if name in entry) / 1e9),
        _percent(entry["share_of_limit"]),
        _percent(entry.get("share_of_peak")),
        error,
        _note(entry),
    )


def columns(case: dict) -> tuple[str, ...]:
    """Heads of the table of a case."""
    held = {name for entry in case["entries"] for name in entry}
    heads = [next((heads[name] for name in heads if name in held), "") for heads in (_RATES, _ERRORS)]
    return tuple(head.format(rate=heads[0], error=heads[1]).strip() for head in _COLUMNS)


def _peak(case: dict) -> str:
    """What the CPU can do at best, as a sentence; "" where that was not measured."""
    if "peak" not in case:
        return ""
    peak = case["peak"]
    tile = f", {number(peak['tile_flop_per_s'] / 1e9)} in a tile that stays in L2" if peak["tile_flop_per_s"] else ""
    return f"Peak {number(peak['flop_per_s'] / 1e9)} GFLOP/s: {peak['unit']}, in registers{tile}. "


def case_table(found: dict, case: dict) -> str:
    """Heading, table and targets of one case."""
    rounds = [entry["rounds"] for entry in case["entries"] if "rounds" in entry]
    times = f"{min(rounds):g} to {max(rounds):g} times each" if rounds else "not at all"
    runs = f"Timed {times}" + (f" in each of {case['runs']} runs (medians)" if "runs" in case else "")
    measured = f"{runs}, load {case['load']}, {case['date'][:10]}, commit {case['commit']}"
    lines = [
        f"### {found['title']}, {shape_text(case['shape'])} ({found['axes']}), {case['dtype']}",
        "",
        f"Limit {ms_text(case['limit_ms'])}: {case['limit_is']}. {_peak(case)}{measured}."
        + (f" Predicted for an {case['predicted_for']}: {ms_text(case['predicted_ms'])}." if "predicted_ms" in case else ""),
        "",
        markdown(*_without_empty(columns(case), [entry_row(entry) for entry in case["entries"] if entry["status"] in _TRIED])),
    ]
    left_out = [entry for entry in case["entries"] if entry["status"] not in _TRIED]
    if left_out:
        lines += ["", "Not compared:", "", *(f"- {e['implementation']}: {e['status']}: {e['reason']}" for e in left_out)]
    if case["targets"]:
        lines += ["", "Targets:", "", *(f"- {_verdict(t)}: {t['target']} (got {t['got']})" for t in case["targets"])]
    return "\n".join(lines)


def _verdict(target: dict) -> str:
    return "open" if target["met"] is None else "met" if target["met"] else "MISSED"


def workload_report(found: dict) -> str:
    return "\n\n".join([machine_line(found["machine"]), *(case_table(found, case) for case in found["cases"])])


def machine_line(machine: dict) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    unit = f"{machine['cores']} cores, {machine['threads']} threads, {machine['isa']}"
    return f"{machine['name']} ({unit}); {versions}."


def _ratio(entries: dict, peer: str) -> str:
    entry = entries.get(peer, {})
    return f"{entry['times_ours']:.1f}x" if "times_ours" in entry else "-"


def _memory(entries: dict, name: str) -> str:
    peak = entries.get(name, {}).get("peak_mb")
    return "-" if peak is None else f"{number(peak)} MB"


def peer_table(found: dict) -> str:
    """One row for each case: our time, how many times longer the peers take, peak memory above the inputs."""
    by_case = [(case, {e["implementation"]: e for e in case["entries"]}) for case in found["cases"]]
    peers = [p for p in _PEERS if any("times_ours" in entries.get(p, {}) for _, entries in by_case)]
    held = {name for _, entries in by_case for name in entries[runner.OURS]}
    shares = {head: name for head, name in _SHARES.items() if name in held}
    head = (found["axes"], "dtype", "fastssl", *shares, *(_PEERS[p] for p in peers), "peak memory", "eager's memory")
    rows = []
    for case, entries in by_case:
        ours = entries[runner.OURS]
        if "ms" in ours:
            cells = (ms_text(ours["ms"]), *(_percent(ours.get(share)) or "-" for share in shares.values()))
            rows.append(
                (shape_text(case["shape"]), case["dtype"], *cells, *(_ratio(entries, p) for p in peers))
                + (_memory(entries, runner.OURS), _memory(entries, "eager"))
            )
    return markdown(head, rows)
