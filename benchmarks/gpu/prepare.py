"""Before a GPU is lent, on any machine: would the working tree travel, and does the whole plan run here at tiny shapes?

    python -m benchmarks.gpu --call prepare [--out DIR]

Imports ``plan``, ``run`` and ``core.machine``.
"""

import os
import subprocess
from pathlib import Path

from benchmarks.core import machine
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu.run import ROOT

#: Bytes of a working tree that a lent machine takes; it takes what git does not ignore, and these folders.
CARRIED_BYTES = 64 << 20
CARRIED_TOO = (".wheels", "shared")
_NAMED = 8


def carried(root: Path = ROOT) -> list[tuple[int, str]]:
    """(bytes, path) of every file that travels, the largest first. Raises OSError or CalledProcessError where git fails."""
    asked = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    names = {os.fsdecode(name) for name in asked.stdout.split(b"\0") if name}
    beside = (path for folder in CARRIED_TOO for path in (root / folder).rglob("*") if not path.is_dir())
    names |= {str(path.relative_to(root)) for path in beside}
    return sorted(((os.lstat(root / name).st_size, name) for name in names if os.path.lexists(root / name)), reverse=True)


def check_carried(found: list[tuple[int, str]], most: int = CARRIED_BYTES) -> str:
    """ "", or why the tree does not travel, with its largest files."""
    total = sum(size for size, _ in found)
    if total <= most:
        return ""
    largest = "\n".join(f"    {size / 2**20:8.1f} MiB  {name}" for size, name in found[:_NAMED])
    return f"the working tree has {total / 2**20:.1f} MiB, at most {most / 2**20:.0f} MiB travel. Its largest files:\n{largest}"


def commands(minutes: float) -> list[str]:
    """The commands to run on the machine. They name the commit, because the copy there has no ``.git``."""
    words = f"--commit {machine.commit()}" + (f" --minutes {minutes:g}" if minutes != 15 else "")
    return [f"python3 -m benchmarks.gpu --call {call} --out DIR {words}" for call in gpu_plan.CALLS]
