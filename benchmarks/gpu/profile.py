"""Stage of a GPU run that asks what limits each kernel: Nsight Compute over one forward and backward of the main cases.

    python -m benchmarks.gpu.profile GROUP SECONDS    the process that is profiled: a marker kernel, then a case, and so on

Every case runs once before, so that nothing compiles under the profiler. ncu writes its file when the process ends; so there are
two groups of cases, and a process begins no case after SECONDS. The table has one line for each kernel of a case.

Imports ``cases``, ``run``, ``core`` and ``report``.
"""

import csv
import shutil
import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.core import runner
from benchmarks.core.prepared import release
from benchmarks.gpu.cases import Case, bound
from benchmarks.gpu.run import Run, python
from benchmarks.report import tables as report

#: What a call of the plan profiles, with ncu's own basic set of sections: cases for each kernel of similarities.
SHORT = {
    "short": (
        Case("nt_xent", (32768, 128), "bfloat16", ()),
        Case("moco", (1024, 65536, 128), "bfloat16", ()),
        Case("clip", (16384, 256), "bfloat16", ()),
        Case("siglip", (16384, 256), "bfloat16", ()),
    )
}
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "WarpStateStats",
    "Occupancy",
    "LaunchStats",
)
GROUPS = {
    "tiles": (
        Case("nt_xent", (32768, 128), "bfloat16", ()),
        Case("moco", (1024, 65536, 128), "bfloat16", ()),
        Case("siglip", (16384, 768), "bfloat16", ()),
        Case("clip", (16384, 512), "bfloat16", ()),
        Case("nt_xent", (4096, 128), "bfloat16", ()),
        Case("nt_xent", (4096, 128), "float32", ()),
    ),
    "updates": (
        Case("ema", ("vit_l16",), "float32", ()),
        Case("lars", ("resnet50",), "float32", ()),
        Case("adamw_ema", ("vit_b16",), "float32", ()),
        Case("queue_push", (256, 65536, 128), "float32", ()),
        Case("mask_ids", (4096, 196), "float32", ()),
        Case("embed_visible", (1024, 224, 16, 768), "bfloat16", ()),
        Case("restore_tokens", (1024, 196, 512), "bfloat16", ()),
        Case("patch_loss_norm", (1024, 224, 16), "bfloat16", ()),
    ),
}
#: Part of its time after which a process begins no case, and what it prints before the cases that it left out.
BEGIN, LEFT_OUT = 0.6, "left out: "
#: Name of the kernel of ``torch.cuda._sleep``, which runs before each case and separates them.
MARKER = "spin_kernel"
#: Kernels of a group that are profiled at most.
LAUNCHES = 200
#: Head -> words that the names of ncu's columns hold, alternative after alternative. The first alternative with a number counts,
#: with its largest number.
_COLUMNS = {
    "us": (("gpu__time_duration.sum",),),
    "tensor %": (("sm__pipe_tensor_cycles_active", "pct"), ("pipe_tensor", "pct")),
    "SM %": (("sm__throughput", "pct_of_peak_sustained_elapsed"),),
    "L2 %": (("lts__throughput", "pct"), ("lts__t_sectors", "pct"), ("lts__", "pct_of_peak_sustained_elapsed")),
    "DRAM %": (("gpu__dram_throughput", "pct"), ("dram__throughput", "pct")),
    "registers": (("launch__registers_per_thread",),),
    "occupancy %": (("sm__warps_active", "pct"),),
}
#: A rate above which a unit is said to bind; below, the kernel waits.
_BOUND_PERCENT = 60.0


@dataclass
class Line:
    """One kernel of a case: how often, and the values of its longest launch (None: not reported)."""

    case: str
    kernel: str
    launches: int
    values: dict[str, float | None]

    def binds(self) -> str:
        rates = {head: value for head, value in self.values.items() if head in ("tensor %", "SM %", "L2 %", "DRAM %") and value}
        if not rates:
            return ""
        head = max(rates, key=rates.get)
        return head.removesuffix(" %") if rates[head] >= _BOUND_PERCENT else f"latency (most: {head.removesuffix(' %')})"


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _values(row: dict[str, str]) -> dict[str, float | None]:
    found = {}
    for head, alternatives in _COLUMNS.items():
        matched = ([_number(row[name] or "") for name in row if all(word in name for word in words)] for words in alternatives)
        numbers = ([value for value in values if value is not None] for values in matched)
        found[head] = next((max(values) for values in numbers if values), None)
    if found["us"] is not None:
        found["us"] /= 1e3  # base units: ns
    return found


def read_profile(text: str, cases: tuple[Case, ...]) -> list[Line]:
    """Lines of the table from ``ncu --csv --page raw --print-units base``; lines of ncu itself start with ==."""
    rows = csv.DictReader(line for line in text.splitlines() if line and not line.startswith("=="))
    lines: dict[tuple[int, str], Line] = {}
    at = -1
    for row in rows:
        kernel = row.get("Kernel Name") or ""
        if MARKER in kernel:
            at += 1
            continue
        if not kernel or not 0 <= at < len(cases):  # the row of units, or a kernel before the first marker
            continue
        values = _values(row)
        line = lines.setdefault((at, kernel), Line(str(cases[at]), kernel, 0, values))
        line.launches += 1
        if (values["us"] or 0) > (line.values["us"] or 0):
            line.values = values
    return list(lines.values())


def table(lines: list[Line]) -> str:
    head = ("case", "kernel", "launches", *_COLUMNS, "binds")
    rows = []
    for line in lines:
        values = ["" if value is None else report.number(value) for value in line.values.values()]
        name = line.kernel.partition("(")[0].removeprefix("void ")[-60:]
        rows.append((line.case, name.replace("|", "/"), str(line.launches), *values, line.binds()))
    return report.markdown(head, rows)


def profile(run: Run) -> None:
    """Profiles each group of cases in a process of its own, and reports one table."""
    tool = shutil.which("ncu")
    reason = "needs a GPU" if run.device != "cuda" else "" if tool else "ncu is not installed"
    if reason:
        run.skip("profile", reason)
        return
    folder, lines, said = run.folder("profile"), [], []
    groups = SHORT if run.short else GROUPS
    sections = ["--set", "basic"] if run.short else [word for section in SECTIONS for word in ("--section", section)]
    share_s = run.stage_s() / len(groups)
    for name, cases in groups.items():
        raw = folder / f"{name}.csv"
        command = [tool, "--clock-control", "none", "--profile-from-start", "off", "--launch-count", str(LAUNCHES)]
        command += [*sections, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(raw)]
        step = run.step(f"profile {name}", [*command, *python("benchmarks.gpu.profile", name, f"{BEGIN * share_s:.0f}")], share_s)
        text = raw.read_text(errors="replace") if raw.exists() else ""
        found = read_profile(text, cases)
        step.note = f"{len(found)} kernels"
        lines += found
        said += [line for line in step.output().splitlines() if line.startswith("failed:")]
        for line in step.output().splitlines():
            if line.startswith(LEFT_OUT):
                run.drop(f"profile of {line.removeprefix(LEFT_OUT)}", "no time left")
        said += [] if found else [f"{name}: ncu reported no kernel: {text[-800:]}"]
    shown = "\n\n".join([table(lines), *said])
    (folder / "profile.txt").write_text(shown + "\n")
    run.keep(folder / "profile.txt")
    run.report("profile", f"## Profiles\n\n{shown}")


def main(argv: list[str]) -> int:
    """The process that is profiled. A case that fails is named, and the next one follows."""
    until = time.monotonic() + float(argv[1])
    for case in (SHORT | GROUPS)[argv[0]]:
        if time.monotonic() > until:
            print(f"{LEFT_OUT}{case}", flush=True)
            continue
        step = None
        try:
            step = bound(case, runner.OURS, "cuda")
            step()
            torch.cuda.synchronize()
        except Exception as error:  # the other cases are worth having
            print(f"failed: {case}: {type(error).__name__}: {error}", flush=True)
            step = None
        torch.cuda.profiler.start()
        torch.cuda._sleep(1)
        if step is not None:
            step()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        del step
        release("cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
