"""The tables and the picture of docs/scaling.md, and what the command prints. Each number is predicted, or published by others.

Imports ``compute``, ``links``, ``measure``, ``model`` and ``benchmarks.report``.
"""

import re
from dataclasses import replace
from pathlib import Path

from benchmarks.report.tables import markdown, ms_text, number
from benchmarks.scaling.compute import GPUS, MEMORY, Kernels
from benchmarks.scaling.links import HGX, NVLINK4
from benchmarks.scaling.measure import measured
from benchmarks.scaling.model import (
    PART_BYTES,
    Machine,
    Prediction,
    Problem,
    closed_ring,
    hidden_from,
    memory,
    predict,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "pictures" / "scaling.png"
GPU = "H100"
#: (W, N) of the page's large table, and its width D.
SIZES, WIDTH = ((8, 4096), (8, 16384), (64, 4096), (64, 16384), (1024, 1024), (1024, 4096), (1024, 16384)), 512
_WIDTHS, _WORLDS = (128, 512, 1024), (8, 16, 1024)


def amount(count: float) -> str:
    """Bytes as a reader counts them: "1.50 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{number(count / 1e3)} kB"


def _cells(found: Prediction) -> tuple[str, ...]:
    forward, backward = found.forward, found.backward
    times = (ms_text(1e3 * each) for each in (forward.seconds, backward.seconds, found.waiting))
    return (*times, amount(found.memory), amount(found.sent))


def details(problem: Problem, machine: Machine, transports: tuple[str, ...]) -> str:
    """Everything that is predicted of one problem."""
    head = ("transport", "pass", "time", "compute", "transfers", "waiting", "memory of a rank", "sent by a rank")
    lines = []
    for transport in transports:
        found = predict(problem, machine, transport)
        for name in ("forward", "backward"):
            part = getattr(found, name)
            times = (ms_text(1e3 * each) for each in (part.seconds, part.compute, part.communication, part.waiting))
            held = ("", "") if name == "forward" else (amount(found.memory), amount(found.sent))
            lines.append((transport, name, *times, *held))
    return markdown(head, lines)


def sizes(machine: Machine, width: int = WIDTH) -> str:
    """Both transports from 8 GPUs to a batch of 16 million rows on 1,024 GPUs, one direction."""
    head = ("GPUs", "rows of a GPU", "batch", "transport", "forward", "backward", "waiting", "memory of a GPU", "sent by a GPU")
    lines = []
    for world, rows in SIZES:
        problem = Problem(rows, width, world)
        for transport in ("gather", "ring"):
            found = predict(problem, machine, transport)
            lines.append((f"{world:,}", f"{rows:,}", f"{problem.batch:,}", f"`{transport}`", *_cells(found)))
    return markdown(head, lines)


def hidden(machine: Machine) -> str:
    """From how many rows on transfers cost at most 5 % of the compute."""
    head = ("D", "GPUs", "`gather`", "`ring`", "a ring over all network cards (not built)")
    lines = []
    for width in _WIDTHS:
        for world in _WORLDS:
            found = [hidden_from(Problem(1, width, world), machine, transport) for transport in ("gather", "ring", "rails")]
            if world <= machine.cluster.per_node:
                found[2] = found[1]
            lines.append((str(width), f"{world:,}", *(f"{rows:,}" if rows else "more than 262,144" for rows in found)))
    return markdown(head, lines)


def parts(machine: Machine, rows: int = 16384, world: int = 1024) -> str:
    """The ring with parts of other sizes."""
    head = ("size of a part", "columns of a part", "forward", "backward", "waiting", "memory of a GPU")
    lines = []
    for size in (1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24):
        problem = Problem(rows, WIDTH, world, part_bytes=size)
        found = predict(problem, machine, "ring")
        name = f"{size >> 20} MiB" + ", the library's" * (size == PART_BYTES)
        lines.append((name, f"{problem.parts()[0][0]:,}", *_cells(found)[:4]))
    return markdown(head, lines)


def unsteady(machine: Machine, rows: int = 16384, noise: float = 0.1) -> str:
    """How much longer the ring takes where the time of each step varies."""
    calm = Problem(rows, WIDTH, 1024)
    times = [predict(problem, machine, "ring").seconds for problem in (calm, replace(calm, noise=noise))]
    return (
        f"Where the time of a step varies by {noise:.0%} (standard deviation) from rank to rank and from step to step, the ring "
        f"of 1,024 GPUs with {rows:,} rows each takes {times[1] / times[0]:.2f} times as long, since neighbours wait for each "
        "other at every step."
    )


def published() -> str:
    """The model against what others measured."""
    head = ("what", "published", "the model", "published / model")
    lines = []
    for rows, world, gigabytes in ((8192, 8, 0.36), (16384, 8, 0.72), (32768, 8, 1.45), (32768, 32, 1.44)):
        first = 2 * 4 * rows * 768  # the gradients of one direction, while the other is computed
        held = (first + memory(Problem(rows, 768, world, itemsize=4, part_bytes=1 << 40), "ring")) / 1e9
        what = f"Inf-CL's ring, {world} A800, {rows:,} rows each, D = 768, float32, two directions: memory"
        lines.append((what, f"{gigabytes} GB", f"{number(held)} GB", f"{gigabytes / held:.2f}"))
    for batch, world, alone, together in ((65536, 4, 46.9, 13.1), (65536, 8, 46.9, 10.1), (131072, 8, 193.4, 31.5)):
        chunk = batch // world * 768
        ms = 1e3 * closed_ring(1e-3 * alone / world**2, NVLINK4, world, 2 * chunk, 4 * chunk).seconds
        what = f"siglip-kernel's ring, {world} GH200, {batch:,} x 768, from its {alone} ms on one"
        lines.append((what, f"{together} ms", f"{number(ms)} ms", f"{together / ms:.2f}"))
    moved = 2 * 2**30
    rate = moved * 255 / 256 / HGX.collective(256, moved / 256) / 1e9
    lines.append(
        ("all-gather of 2 GB on 256 H100 (NVIDIA/nccl issue 1218)", "200 GB/s", f"{number(rate)} GB/s", f"{200 / rate:.2f}")
    )
    return markdown(head, lines)


def blocks() -> dict[str, str]:
    """Name of a block of the page -> its text."""
    machine = Machine(Kernels.of(GPU))
    return {
        "measured": measured(),
        "sizes": sizes(machine),
        "hidden": hidden(machine),
        "parts": parts(machine),
        "unsteady": unsteady(machine),
        "published": published(),
    }


def with_blocks(text: str, texts: dict[str, str]) -> str:
    """``text`` with each block between its markers replaced. Raises ValueError where one has no markers."""
    for name, block in texts.items():
        start, end = f"<!-- scaling:{name} -->", f"<!-- scaling:{name}:end -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"scaling: {PAGE} must hold {start} and {end} once each")
        text = re.sub(f"{start}.*{end}", lambda _: f"{start}\n{block}\n{end}", text, flags=re.S)  # noqa: B023
    return text


_COLOURS = {"gather": "#0072B2", "ring": "#D55E00", "rails": "#009E73"}
_NAMES = {"gather": "gather", "ring": "ring", "rails": "ring over all network cards (not built)"}


def _frame(axes, title: str, below: str, ticks: list[int], unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.set_xlabel(below)
    axes.grid(True, axis="y", color="#dddddd", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes, transport: str, x: list[int], y: list[float]) -> None:
    axes.plot(x, y, color=_COLOURS[transport], marker="o", ms=5, lw=2, label=_NAMES[transport])


def draw(path: Path = PICTURE) -> Path:
    """Left, time against the rows of a GPU; right, memory against the number of GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    machine = Machine(Kernels.of(GPU))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.4, 4.5), dpi=150)
    counts = [1 << k for k in range(9, 17)]
    _frame(left, f"time / compute of a gather: 1,024 {GPU}, D = {WIDTH}, bfloat16", "rows of a GPU", counts, "x")
    for transport in _COLOURS:
        found = [[predict(Problem(rows, WIDTH, 1024), machine, each) for each in (transport, "gather")] for rows in counts]
        _line(left, transport, counts, [ours.seconds / gather.compute for ours, gather in found])
    left.axhline(1, color="black", lw=1.2, ls=(0, (4, 3)))
    left.set_yticks([1, 2, 5, 10, 20, 50, 100])
    left.legend(frameon=False, fontsize=9)
    worlds = [1 << k for k in range(3, 11)]
    _frame(right, f"memory of a GPU for the loss: 16,384 rows each, D = {WIDTH}, bfloat16", "GPUs", worlds, " GB")
    for transport in ("gather", "ring"):
        _line(right, transport, worlds, [memory(Problem(16384, WIDTH, world), transport) / 1e9 for world in worlds])
    for name in GPUS:
        right.axhline(MEMORY[name] / 1e9, color="#666666", lw=1, ls=(0, (4, 3)))
        right.annotate(
            f"{name}'s memory", (8, MEMORY[name] / 1e9), (0, -11), textcoords="offset points", color="#666666", fontsize=8
        )
    right.legend(frameon=False, fontsize=9, loc="center left")
    figure.suptitle("InfoNCE over the rows of many GPUs, forward and backward", x=0.012, ha="left", fontweight="bold")
    note = "Predicted from the kernels' machine code and the links' published rates; nothing here was measured."
    figure.text(0.012, 0.012, note, fontsize=7.5, color="#666666")
    figure.tight_layout(rect=(0, 0.045, 1, 0.99), w_pad=2.0)
    figure.savefig(path)
    plt.close(figure)
    return path
