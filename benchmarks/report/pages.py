"""The benchmark numbers of README.md and the page docs/benchmarks.md, made from result files.

A row is shown only if its commit can be checked out again: results of a tree with uncommitted changes are left out and named.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.core import runner
from benchmarks.core.masking import MASKING
from benchmarks.core.registry import WORKLOADS
from benchmarks.report.tables import RESULTS, machine_line, markdown, ms_text, number, peer_table, shape_text

ROOT = Path(__file__).resolve().parents[2]
README, PAGE, PICTURES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "pictures"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"

#: Rows of the README's table: workload, shape, what a reader calls it, the implementation that most people use today.
README_ROWS = (
    ("nt_xent", (4096, 128), "NT-Xent, 4096 pairs", "lightly"),
    ("moco_step", (256, 65536, 128), "MoCo loss, queue", "moco_repository"),
    ("mae_bundle", (64, 224, 16, 768, 512), "MAE, outside its transformer", "mae_repository"),
)
_USUAL = {"lightly": "lightly", "moco_repository": "MoCo's code", "mae_repository": "MAE's code"}

_HEAD = """# Benchmarks
This page shows what the operations of fastssl take in time and memory beside other implementations. `python -m benchmarks.report` \
writes it from the result files under `benchmarks/results/`, and a test compares it with them.

`fastssl bench --list` lists the workloads and the other implementations that are installed. `fastssl bench nt_xent` measures one \
workload on your machine, and `fastssl bench --save` stores what it measures as result files.

## How it is measured
- Every implementation first passes an accuracy check against float64. One that fails it gets no time.
- The implementations run one after the other, again and again, in one process, so that a slow minute of the machine hits all of \
them. A time is the median over these rounds. Where a section says so, all of \
this was done in several runs, one case after the other, and each figure, ratios included, is the median of the runs.
- The column of another implementation says how many times as long as fastssl it takes: 2.0x is twice the time.
- Losses, and masked image modelling, are timed forward and backward; updates are timed for one step in place.
- "Of the limit" compares with what the machine can do at best. For a loss that is the time of the matrix products that it \
needs, in this machine's own `torch.mm` (two for NT-Xent, SupCon and MoCo, three for SigLIP, four for InfoNCE and CLIP). More \
than 100 % is possible: `torch.mm` also writes its product to memory, and CLIP keeps some of its logits, which saves it a \
product. For an update it is the time in which the machine's memory moves the bytes of the step; for MoCo's step and for the \
embedding of patches it is their matrix products.
- "Of the peak" compares the same matrix products with the multiply-adds that this CPU does in registers, without memory, by the \
fastest of its instructions for the dtype. `fastssl info --measure` prints these peaks, and what a product reaches that stays in \
the L2 cache.
- In bfloat16 and float16, "fastssl in float32" is our own loss of the same values in float32. The limit is the product in that \
dtype, or in float32 where that is faster: `torch.mm` of float16 is slow on most CPUs.
- Peak memory is what an implementation needs above its inputs, or above the state that it updates, in a process of its own.
- "Eager" is the plain PyTorch form of the same computation."""

_SECTIONS = ("Losses", "Updates of state", "Masked image modelling")

#: What has to be said beside a number, by workload and implementation. ``{...}`` come from the entry.
_REMARKS = {
    ("nt_xent", "pytorch_metric_learning"): "pytorch-metric-learning {version} compares every positive pair with every negative"
    " pair of the batch, so its time and memory grow with the cube of the batch size: {time} and {memory} for {rows} rows. Larger"
    " batches were not tried.",
}


def all_results(folder: Path = RESULTS) -> dict[str, list[dict]]:
    """Name of a machine -> its results, GPUs first."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*/*.json"), key=lambda p: (p.parent.name.startswith("cpu"), str(p))):
        found.setdefault(path.parent.name, []).append(runner.read(path))
    return found


def can_be_repeated(case: dict) -> bool:
    """Whether the commit of a case is the whole of what was measured."""
    return not case["commit"].endswith("-dirty")


def repeatable(found: dict) -> dict:
    """A result without the cases that cannot be repeated."""
    return found | {"cases": [case for case in found["cases"] if can_be_repeated(case)]}


def _entries(case: dict) -> dict[str, dict]:
    return {entry["implementation"]: entry for entry in case["entries"]}


def short_title(found: dict) -> tuple[str, str]:
    """(title, what its last parentheses explain): "AdamW (eager: foreach)" -> ("AdamW", "eager: foreach")."""
    title, explained = re.fullmatch(r"(.*?)(?: \(([^()]*(?:eager|backward)[^()]*)\))?", found["title"]).groups()
    return title.removesuffix(", forward + backward"), explained or ""


def _remarks(found: dict) -> Iterable[str]:
    for case in found["cases"]:
        for name, entry in _entries(case).items():
            text = _REMARKS.get((found["work"], name))
            if text and {"ms", "peak_mb"} <= entry.keys():
                time = f"{number(entry['ms'] / 1e3, 2)} s" if entry["ms"] >= 1000 else ms_text(entry["ms"])
                memory = f"{number(entry['peak_mb'] / 1e3, 2)} GB"
                yield text.format(version=entry["version"], time=time, memory=memory, rows=case["rows"])


def section_of(found: dict) -> str:
    if found.get("kind", "loss") == "loss":
        return _SECTIONS[0]
    return _SECTIONS[2] if found["work"] in MASKING else _SECTIONS[1]


def _workload(found: dict) -> str:
    """Heading, date, table and remarks of one result."""
    title, explained = short_title(found)
    dates = sorted({case["date"][:10] for case in found["cases"]})
    commits = sorted({case["commit"] for case in found["cases"]})
    measured = f"Measured on {' and '.join(dates)}, commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    runs = sorted({case["runs"] for case in found["cases"] if "runs" in case})
    measured += f" Medians of {' or '.join(map(str, runs))} runs." if runs else ""
    explained = f" {explained[0].upper()}{explained[1:]}." if explained else ""
    return "\n\n".join([f"#### {title}", measured + explained, peer_table(found), *_remarks(found)])


def _missing(results: list[dict]) -> str:
    """One sentence about the cases that are left out, or ""."""
    left_out = [
        f"{short_title(found)[0]} at {shape_text(case['shape'])}"
        for found in results
        for case in found["cases"]
        if not can_be_repeated(case)
    ]
    if not left_out:
        return ""
    return f"These rows are missing, because the code that was measured was not committed as it was: {'; '.join(left_out)}."


def _unmeasured(results: dict[str, list[dict]]) -> str:
    """One sentence about the workloads that no machine has a result of, or ""."""
    measured = {found["work"] for held in results.values() for found in held}
    names = ", ".join(f"`{name}`" for name in WORKLOADS if name not in measured)
    told = "[The decisions](decisions/index.md) tell what was measured while they were written."
    return f"These workloads have no result file yet: {names}. {told}" if names else ""


def _machine(slug: str, results: list[dict]) -> str:
    parts = [f"## {slug}", f"{machine_line(results[0]['machine'])} Result files: `benchmarks/results/{slug}/`.", _missing(results)]
    shown = [repeatable(found) for found in results]
    for section in _SECTIONS:
        held = [found for found in shown if found["cases"] and section_of(found) == section]
        if held:
            parts += [f"### {section}", *map(_workload, held)]
    return "\n\n".join(part for part in parts if part)


def page(folder: Path = RESULTS) -> str:
    """The whole of docs/benchmarks.md."""
    results = all_results(folder)
    pictures = [
        f"![Time and peak memory of {name} against the batch size](pictures/{file})"
        for file, name in (("nt_xent.png", "NT-Xent"), ("clip.png", "CLIP"))
    ]
    gpu = [] if _has_gpu(results) else ["No GPU has been measured. [The plan for the first GPU run](gpu.md) is ready."]
    parts = [_HEAD, _unmeasured(results), *gpu, *pictures, *(_machine(slug, found) for slug, found in results.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _has_gpu(results: dict[str, list[dict]]) -> bool:
    return not all(slug.startswith("cpu") for slug in results)


def _readme_row(found: dict, shape: tuple[int, ...], label: str, usual: str) -> tuple[str, ...] | None:
    for case in repeatable(found)["cases"]:
        if tuple(case["shape"]) == shape and case["dtype"] == "float32":
            entries = _entries(case)
            ours, eager, other = (entries.get(name, {}) for name in (runner.OURS, "eager", usual))
            if not ({"ms", "peak_mb"} <= ours.keys() & eager.keys() and "ms" in other):
                return None  # measured without memory, or without one of the others
            times = (ms_text(ours["ms"]), ms_text(eager["ms"]), f"{ms_text(other['ms'])} ({_USUAL[usual]})")
            return (label, *times, f"{number(ours['peak_mb'])} MB", f"{number(eager['peak_mb'])} MB")
    return None


def readme_block(folder: Path = RESULTS) -> str:
    """The small table of the README, of the first CPU that has all of its rows, and where it comes from."""
    results = all_results(folder)
    for slug, held in results.items():
        by_name = {found["work"]: found for found in held}
        rows = [_readme_row(by_name[name], *rest) for name, *rest in README_ROWS if name in by_name]
        if slug.startswith("cpu") and len(rows) == len(README_ROWS) and None not in rows:
            head = ("One step", "fastssl", "PyTorch", "usual code", "memory", "PyTorch's memory")
            machine = held[0]["machine"]
            where = f"{machine['name'].replace('(R)', '')}, {machine['cores']} cores, {machine['isa']}"
            caption = f"Median time and peak memory of forward and backward, float32, on an {where}."
            return f"{markdown(head, rows)}\n\n{caption}{'' if _has_gpu(results) else ' No GPU has been measured.'}"
    raise ValueError(f"report: no CPU under {folder} has all rows of the README's table, from commits without changes")


def with_block(text: str, block: str, path: Path) -> str:
    """``text`` with the block between its markers replaced; ``path`` is named in the error."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"report: {path} must hold {START} and {END} once each, in this order")
    return f"{text.split(START)[0]}{START}\n{block}\n{END}{text.split(END)[1]}"


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """Each file that holds benchmark numbers, with the text that it should have."""
    return {README: with_block(README.read_text(), readme_block(folder), README), PAGE: page(folder)}
