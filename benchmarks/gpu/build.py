"""Stages of a GPU run that make it ready: wheels, facts about the machine, the build for the one GPU that is there."""

import hashlib
import importlib.metadata
import json
import re
import sys

from benchmarks.gpu.run import ROOT, Run, python, this_gpu

#: Wheels that the machine cannot fetch, one after another's failure.
WHEELS = ROOT / ".wheels"
#: What was built last, for the second call on a machine that is still there; git ignores the folder.
BUILT = ROOT / "build" / "gpu_build.json"
#: Exit status of the facts where torch finds no GPU.
NO_GPU = 4
#: Where the table of ops begins in what ``fastssl info`` prints.
INFO_TABLE = "\nop "
#: Seconds of a build's time that are kept for ``fastssl info``.
_INFO_S = 15.0

_FACTS = f"""
import json, os, shutil, subprocess, sys, torch
from benchmarks.core import machine, rates
if not torch.cuda.is_available():
    print(f"torch {{torch.__version__}} finds no GPU")
    sys.exit({NO_GPU})
print(json.dumps(machine.describe("cuda")))
for tool in ("nvcc", "ncu", "compute-sanitizer", "cuobjdump"):
    path = shutil.which(tool)
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.strip().splitlines() if path else ["absent"]
    print(f"{{tool}}: {{[line for line in said if 'ersion' in line or 'release' in line or line == 'absent'][-1:]}}")
free, total = torch.cuda.mem_get_info()
print(f"{{torch.cuda.get_device_capability()}}, {{free / 2**30:.0f}} of {{total / 2**30:.0f}} GiB free, {{os.cpu_count()}} cores")
found = rates.measured(torch.cuda.get_device_name())
print(f"copy of 2.1 GB: {{found.bytes_per_s / 1e12:.2f}} TB/s read + written")
print(f"copy of 12.6 MB, out of L2 into L2: {{found.l2_bytes_per_s / 1e12:.2f}} TB/s")
print(f"bfloat16 product of an 8192 cube: {{found.flop_per_s / 1e12:.0f}} TFLOP/s")
print(f"rates of the predictions: {{rates.KNOWN.get(found.name, found)}}")
"""


def wheels(run: Run) -> None:
    """Each wheel into a folder of its own, so that one that does not fit costs no other."""
    found = sorted(WHEELS.glob("*.whl")) if WHEELS.is_dir() else []
    if not found:
        run.skip("wheels", f"there is no {WHEELS.name}/*.whl")
        return
    words = ("install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    folders = {f"wheel {wheel.stem}": run.site_folder(wheel.stem) for wheel in found}
    jobs = [
        (name, python("pip", *words, "--find-links", str(WHEELS), "--target", str(folder), str(wheel)))
        for (name, folder), wheel in zip(folders.items(), found, strict=True)
    ]
    done = run.together(jobs, run.stage_s(), 8)
    run.site += [str(folders[step.name]) for step in done if step.ok]


def facts(run: Run) -> None:
    if run.device != "cuda":
        run.skip("facts", "needs a GPU")
        return
    run.step("nvidia-smi", ["nvidia-smi"], 15)
    step = run.step("facts", [sys.executable, "-c", _FACTS], run.stage_s())
    run.report("facts", "## Facts\n\n```\n" + step.output()[-3000:] + "\n```")
    if step.state == f"exit {NO_GPU}":
        run.halted = step.output().strip()


def spills(logs: list[str]) -> tuple[int, int, list[str]]:
    """(kernels that ptxas compiled, the most registers, the lines of those that spill)."""
    lines = [line for text in logs for line in text.splitlines()]
    used = [int(found[1]) for line in lines if (found := re.search(r"Used (\d+) registers", line))]
    spilled = [line.strip() for line in lines if "spill stores" in line and not re.search(r"\b0 bytes spill stores", line)]
    return len(used), max(used, default=0), spilled


def architecture(device: str) -> dict[str, str]:
    """Lets the build compile for the GPU that is here alone; nothing where none says what it is, and in a rehearsal."""
    gpu = this_gpu() if device == "cuda" else None
    return {"FASTSSL_CUDA_ARCH": gpu[1]} if gpu else {}


def built_from(only: dict[str, str]) -> dict[str, str]:
    """What a build depends on: sources by their content, since a copy of the tree has new times."""
    digest = hashlib.sha256()
    for path in sorted([ROOT / "setup.py", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return {"sources": digest.hexdigest(), "python": sys.version, "torch": importlib.metadata.version("torch"), **only}


def unserved(info: str) -> list[str]:
    """Ops that ``fastssl info`` calls served by the reference on a GPU; it ends with a table of op, CPU, CUDA."""
    lines = [line.split() for line in info.partition(INFO_TABLE)[2].splitlines()]
    return [words[0] for words in lines if words[2:3] == ["reference"]]


def build(run: Run) -> None:
    only = architecture(run.device)
    wanted, libraries = built_from(only), [*(ROOT / "fastssl").glob("*.so")]
    if BUILT.exists() and libraries and json.loads(BUILT.read_text()) == wanted:
        run.skip("build", "these sources are built already")
        return
    step = run.step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], run.stage_s() - _INFO_S, only)
    kernels, registers, spilled = spills([log.read_text(errors="replace") for log in (ROOT / "build" / "cuda").glob("*.log")])
    step.note = f"{kernels} CUDA C++ kernels, at most {registers} registers, {len(spilled)} with spills"
    told = ["## Build\n\n```\n" + "\n".join([*spilled[:10], step.output()[-3000:]]) + "\n```"] if step.bad or spilled else []
    if step.ok:
        BUILT.write_text(json.dumps(wanted))
    info = run.step("info", python("fastssl", "info"), 60)
    if run.device == "cuda" and (missing := unserved(info.output())):
        info.state = f"ops without a kernel on this GPU: {len(missing)}"
        names = f"Plain PyTorch serves {', '.join(missing)}: what smoke says of them is no news."
        told.append(f"## Ops without a kernel\n\n{names}\n\n```\n{info.output().partition(INFO_TABLE)[0].strip()}\n```")
    if told:
        run.report("build", "\n\n".join(told))
