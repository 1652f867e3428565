"""Pictures made from result files: time against batch with the limit, and peak memory against batch; log axes. Of an update: a bar
for each implementation, and the limit.

    python -m benchmarks.report.plots [RESULT.json ...] [--out DIR]        every result file, beside itself, when none is named

Colours follow Okabe and Ito, distinguishable with any colour vision; each line also has a marker and its name at its end.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.core import runner
from benchmarks.core.workloads import IN_FLOAT32
from benchmarks.report.pages import all_results, repeatable
from benchmarks.report.tables import RESULTS, shape_text

#: name -> (colour, marker); the same in every picture.
STYLE = {
    "fastssl": ("#D55E00", "o"),
    IN_FLOAT32: ("#E8A27A", "o"),
    "eager": ("#0072B2", "s"),
    "compile": ("#009E73", "^"),
    "lightly": ("#CC79A7", "D"),
    "pytorch_metric_learning": ("#3A92C9", "v"),
    "linear_cross_entropy": ("#B8860B", "P"),
    "info_nce_pytorch": ("#7A5195", "X"),
    "memeff": ("#8C564B", "<"),
    "inf_cl": ("#56B4E9", ">"),
    "cut_cross_entropy": ("#333333", "h"),
    "liger": ("#999999", "*"),
    "open_clip": ("#882255", "d"),
    "siglip_kernel": ("#44AA99", "p"),
    "moco_repository": ("#E69F00", "X"),
    "mae_repository": ("#E69F00", "X"),
    "transformers": ("#332288", "P"),
}
LABELS = {
    IN_FLOAT32: "fastssl, in float32",
    "compile": "torch.compile",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "linear_cross_entropy": "torch linear_cross_entropy",
    "info_nce_pytorch": "info-nce-pytorch",
    "inf_cl": "Inf-CL",
    "cut_cross_entropy": "cut-cross-entropy",
    "liger": "Liger",
    "siglip_kernel": "siglip-kernel",
    "loop": "a loop, as DINO's",
    "moco_repository": "MoCo repository",
    "mae_repository": "MAE repository",
    "averaged_model": "torch AveragedModel",
    "fused": "torch fused",
    "update_momentum": "fastssl, on modules",
}


_LEADER = {"arrowstyle": "-", "lw": 0.7, "alpha": 0.6, "shrinkA": 0, "shrinkB": 5, "relpos": (0, 0.5)}


def series(cases: list[dict], value: str) -> dict[str, list[tuple[int, float]]]:
    """implementation -> [(B, value)], B rising, of those that ran at two batch sizes or more."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for case in sorted(cases, key=lambda c: c["shape"][0]):
        for entry in case["entries"]:
            if entry.get(value) is not None and "ms" in entry:
                lines.setdefault(entry["implementation"], []).append((case["shape"][0], entry[value]))
    return {name: points for name, points in lines.items() if len(points) > 1}


def groups(found: dict) -> dict[tuple[int, str], list[dict]]:
    """(D, dtype) -> its cases, the largest group first; only one D makes one line."""
    by: dict[tuple[int, str], list[dict]] = {}
    for case in found["cases"]:
        by.setdefault((case["shape"][-1], case["dtype"]), []).append(case)
    return dict(sorted(by.items(), key=lambda item: -len(item[1])))


def _spread(wanted: list[float], least: float) -> list[float]:
    """Positions as close to ``wanted`` (rising) as a distance of ``least`` allows."""
    placed: list[list[float]] = []
    for y in wanted:
        placed.append([y])
        while len(placed) > 1 and _low(placed[-1], least) < _low(placed[-2], least) + least * len(placed[-2]):
            placed[-2:] = [placed[-2] + placed[-1]]
    return [_low(block, least) + least * k for block in placed for k in range(len(block))]


def _low(block: list[float], least: float) -> float:
    """Lowest position of a block of labels that is centred on the mean of what its members want."""
    return sum(block) / len(block) - least * (len(block) - 1) / 2


def _label_ends(axes, ends: list[tuple[str, float, float, str]]) -> None:
    """Names the lines (name, x, y, colour): right of the axes at their end's height, moved apart where names would touch.

    A line that stops before the last batch size is named beside its last point.
    """
    right = max(x for _, x, _, _ in ends)
    weight = {runner.OURS: "bold"}
    for name, x, y, colour in (end for end in ends if end[1] < right):
        axes.annotate(LABELS.get(name, name), (x, y), (8, 0), textcoords="offset points", color=colour, fontsize=9, va="center")
    ends = sorted((end for end in ends if end[1] == right), key=lambda e: e[2])
    axes.get_xlim(), axes.get_ylim()  # settles the pending autoscale that the transform below depends on
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((x, y))[1]) for _, x, y, _ in ends]
    for (name, x, y, colour), height in zip(ends, _spread(heights, 0.062), strict=True):
        axes.annotate(
            LABELS.get(name, name),
            xy=(x, y),
            xytext=(1.02, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            fontweight=weight.get(name, "normal"),
            arrowprops=_LEADER | {"color": colour},
        )


def _amount(value: float, unit: str) -> str:
    """1500 ms -> "1.5 s", 2000 MB -> "2 GB"."""
    larger = {"ms": "s", "MB": "GB"}
    return f"{value / 1e3:g} {larger[unit]}" if value >= 1e3 else f"{value:g} {unit}"


def _frame(axes, batches: list[int], title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [f"{b:,}" for b in batches])
    axes.minorticks_off()
    axes.set_xlabel("batch size B (pairs)")
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.yaxis.set_major_formatter(lambda value, _: _amount(value, unit))
    axes.grid(True, axis="y", color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.06, y=0.12)


def _draw(axes, lines: dict[str, list[tuple[int, float]]]) -> list[tuple[str, float, float, str]]:
    ends = []
    for name, points in lines.items():
        colour, marker = STYLE.get(name, ("#555555", "."))
        ours = name == runner.OURS
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, ms=6, lw=2.4 if ours else 1.4, zorder=5 if ours else 3)
        ends.append((name, x[-1], y[-1], colour))
    return ends


def _picture(found: dict, cases: list[dict], path: Path) -> Path:
    plt = _pyplot()
    d, dtype = cases[0]["shape"][-1], cases[0]["dtype"]
    batches = sorted({case["shape"][0] for case in cases})
    memory = series(cases, "peak_mb")
    figure, panels = plt.subplots(1, 2 if memory else 1, figsize=(12.4 if memory else 6.4, 4.5), dpi=150, squeeze=False)
    time_axes = panels[0][0]
    _frame(time_axes, batches, f"time, forward + backward (D = {d}, {dtype})", "ms")
    ends = _draw(time_axes, series(cases, "ms"))
    limit = sorted((case["shape"][0], case["limit_ms"]) for case in cases)
    time_axes.plot(*zip(*limit, strict=True), color="black", lw=1.2, ls=(0, (4, 3)), zorder=4)
    sweeps = cases[0]["limit_is"].partition("U ")[0]
    ends.append((f"matrix product, {sweeps}U" if sweeps.isdigit() else "matrix-product limit", *limit[-1], "black"))
    _label_ends(time_axes, ends)
    if memory:
        _frame(panels[0][1], batches, "peak memory above the inputs", "MB")
        _label_ends(panels[0][1], _draw(panels[0][1], memory))
    _sign(figure, found, cases, found["title"].partition(",")[0])
    figure.tight_layout(rect=(0, 0.045, 1, 0.99), w_pad=2.0)
    figure.savefig(path)
    plt.close(figure)
    return path


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _sign(figure, found: dict, cases: list[dict], title: str) -> None:
    """Title above, machine and date below."""
    machine, dates = found["machine"], sorted({case["date"][:10] for case in cases})
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    where = "" if "cuda" in machine else f", {machine['threads']} threads, {machine['isa']}"
    note = f"{machine['name']}{where}, torch {machine['versions']['torch']}, {dates[-1]}"
    figure.text(0.012, 0.012, note, fontsize=7.5, color="#666666")


def _bars(found: dict, cases: list[dict], path: Path) -> Path:
    """One panel for each case: a bar for each implementation, fastest on top, a line at the limit."""
    plt = _pyplot()
    bars = [sorted((e for e in case["entries"] if "ms" in e), key=lambda e: e["ms"]) for case in cases]
    heights = [len(entries) + 1.2 for entries in bars]
    figure, panels = plt.subplots(
        len(cases), 1, figsize=(7.6, 1.0 + 0.32 * sum(heights)), dpi=150, squeeze=False, height_ratios=heights
    )
    for axes, case, entries in zip(panels[:, 0], cases, bars, strict=True):
        names = [LABELS.get(e["implementation"], e["implementation"]) for e in entries]
        colours = [STYLE.get(e["implementation"], ("#999999",))[0] for e in entries]
        drawn = axes.barh(range(len(entries)), [e["ms"] for e in entries], color=colours, height=0.7)
        axes.bar_label(drawn, [_amount(float(f"{e['ms']:.3g}"), "ms") for e in entries], padding=3, fontsize=8)
        axes.axvline(case["limit_ms"], color="black", lw=1.2, ls=(0, (4, 3)), label="limit")
        axes.set_yticks(range(len(entries)), names, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set_title(f"{shape_text(case['shape'])}, {case['dtype']}; dashed: {case['limit_is']}", loc="left", fontsize=8.5)
        axes.xaxis.set_major_formatter(lambda value, _: _amount(value, "ms"))
        axes.spines[["top", "right"]].set_visible(False)
    _sign(figure, found, cases, found["title"].partition(" (")[0])
    figure.tight_layout(rect=(0, 0.03, 1, 0.99))
    figure.savefig(path)
    plt.close(figure)
    return path


def draw(found: dict, folder: Path) -> list[Path]:
    """Of a loss, one picture for each width D and dtype that has at least two batch sizes; of an update, one. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if found.get("kind") == "update":
        timed = [case for case in found["cases"] if any("ms" in entry for entry in case["entries"])]
        return [_bars(found, timed, folder / f"{found['work']}.png")] if timed else []
    for (d, dtype), cases in groups(found).items():
        timed = [case for case in cases if any("ms" in entry for entry in case["entries"])]
        if len({case["shape"][0] for case in timed}) >= 2:
            written.append(_picture(found, timed, folder / f"{found['work']}_d{d}_{dtype}.png"))
    return written


#: Pictures of README and docs/benchmarks.md: file -> (workload, width D).
PAGE_PICTURES = {"nt_xent.png": ("nt_xent", 128), "clip.png": ("clip", 512)}


def draw_pages(results: Path, folder: Path) -> list[Path]:
    """The pictures that README and docs/benchmarks.md show, of the first machine that has each workload."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file, (name, width) in PAGE_PICTURES.items():
        found = next(repeatable(found) for held in all_results(results).values() for found in held if found["work"] == name)
        cases = [case for case in found["cases"] if case["shape"][-1] == width and case["dtype"] == "float32"]
        written.append(_picture(found, cases, folder / file))
    return written


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.plots", description="pictures from result files")
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, help="folder; default: beside each result file")
    args = parser.parse_args(argv)
    for path in args.results or sorted(RESULTS.glob("*/*.json")):
        for picture in draw(runner.read(path), args.out or path.parent):
            print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
