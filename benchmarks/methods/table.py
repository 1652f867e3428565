"""The columns "Untrained and trained" and "Minutes" of the table of methods in docs/methods.md, from the result files.

A row is found by the class that its first cell names: ``MoCoV3`` is the run ``moco_v3``. Everything else of a row stays as it is.
"""

import re

from benchmarks.core.machine import ROOT
from benchmarks.methods.runs import all_runs
from fastssl.train.recipes import RECIPES

PAGE = ROOT / "docs" / "methods.md"
START, END = "## All methods\n", "\n## "
COLUMNS = ("Untrained → trained", "Minutes")
UNSHOWN = ("std", "rank")  # the collapse watch
OTHERS = {  # runs whose class does not have the name of their method
    "cpc_sound": "CPC",
    "bert --task nsp": "NextSentence",
    "bert --task sop": "SentenceOrder",
    "bert --task skip_thought": "SkipThought",
    "bert --task quick_thoughts": "QuickThoughts",
}


def labels_of(method: str) -> dict[str, str]:
    """The scores of a method that the table shows -> their short names."""
    recipe = RECIPES[method]
    every = {name: short for name, (short, *_) in (recipe.scores | recipe.watch).items()}
    return {name: short for name, short in every.items() if name not in (*UNSHOWN, "probe")}


def scores(run: dict, method: str) -> str:
    """Such as "kNN 0.384 → 0.799"; a number that does not change, such as that of the simplest guess, stands once."""
    first, last = run["history"][0], run["history"][-1]
    parts = []
    for name, short in labels_of(method).items():
        if name in last:
            before, after = (f"{row[name]:.3f}" if name in row else "-" for row in (first, last))
            parts.append(f"{short} {after}" if before == after else f"{short} {before} → {after}")
    return ", ".join(parts)


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def cells(cls: str, runs: dict[str, dict]) -> tuple[str, str]:
    """The two cells of a class: a line for each run of it."""
    own = {options: run for options, run in runs.items() if plain(OTHERS.get(options, options.split()[0])) == plain(cls)}
    several = len(own) > 1
    lines = [(f"`{options}`: " if several else "") + scores(run, options.split()[0]) for options, run in own.items()]
    minutes = [f"{run['cpu_seconds'] / 60:.1f}" for run in own.values()]
    return "<br>".join(lines), "<br>".join(minutes)


def written(text: str) -> str:
    """``text`` of the page with both columns filled from the result files."""
    runs = all_runs()
    before, start, rest = text.partition(START)
    table, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page needs the section {START.strip()} and one after it")
    lines = table.split("\n")
    for number, line in enumerate(lines):
        parts = [part.strip() for part in line.strip("|").split("|")]
        if not line.startswith("|") or len(parts) < 4:
            continue
        if parts[0] == "Method":
            parts = parts[:4] + list(COLUMNS)
        elif set(line) <= set("|- "):
            parts = ["---"] * 6
        else:
            cls = re.match(r"`(\w+)", parts[0])
            parts = parts[:4] + list(cells(cls[1] if cls else "", runs))
        lines[number] = f"| {' | '.join(parts)} |"
    return before + start + "\n".join(lines) + end + after
