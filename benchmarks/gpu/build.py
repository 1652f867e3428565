"""Stages of a GPU run that come first: wheels, the properties of the device, the build for the one GPU that is there.

Imports ``run``; the process that reads the device properties imports ``core``.
"""

import hashlib
import importlib.metadata
import json
import re
import sys

from benchmarks.gpu.run import ROOT, Run, python, this_gpu

#: The folder of wheels for a machine that cannot download them.
WHEELS = ROOT / ".wheels"
#: What was built last: a second call on the same machine finds it. git ignores the folder.
BUILT = ROOT / "build" / "gpu_build.json"
#: Exit status of the process that reads the device properties where torch finds no GPU.
NO_GPU = 4
#: Where the table of ops begins in what ``fastssl info`` prints.
INFO_TABLE = "\nop "
#: Seconds of a build's time that are kept for ``fastssl info``.
_INFO_S = 15.0

_PROPERTIES = f"""
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
    """Installs each wheel into a folder of its own, so that a wheel that does not fit costs no other."""
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


def device(run: Run) -> None:
    """What the device is and reaches: names, versions, memory, rates. Without a GPU the whole call ends."""
    if run.device != "cuda":
        run.skip("device", "needs a GPU")
        return
    run.step("nvidia-smi", ["nvidia-smi"], 15)
    step = run.step("device", [sys.executable, "-c", _PROPERTIES], run.stage_s())
    run.report("device", "## Device\n\n```\n" + step.output()[-3000:] + "\n```")
    if step.state == f"exit {NO_GPU}":
        run.halted = step.output().strip()


def spills(logs: list[str]) -> tuple[int, int, list[str]]:
    """(number of kernels that ptxas compiled, most registers of one, the lines of those that spill)."""
    lines = [line for text in logs for line in text.splitlines()]
    used = [int(found[1]) for line in lines if (found := re.search(r"Used (\d+) registers", line))]
    spilled = [line.strip() for line in lines if "spill stores" in line and not re.search(r"\b0 bytes spill stores", line)]
    return len(used), max(used, default=0), spilled


def architecture(device: str) -> dict[str, str]:
    """The environment of a build for just the GPU that is here; empty in a rehearsal, and where no GPU says what it is."""
    gpu = this_gpu() if device == "cuda" else None
    return {"FASTSSL_CUDA_ARCH": gpu[1]} if gpu else {}


def built_from(only: dict[str, str]) -> dict[str, str]:
    """What a build depends on. Sources count by their content, since the files of a copied tree have new times."""
    digest = hashlib.sha256()
    for path in sorted([ROOT / "setup.py", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return {"sources": digest.hexdigest(), "python": sys.version, "torch": importlib.metadata.version("torch"), **only}


def unserved(info: str) -> list[str]:
    """Ops that the reference serves on a GPU, read from the table of op, CPU, CUDA at the end of ``fastssl info``."""
    lines = [line.split() for line in info.partition(INFO_TABLE)[2].splitlines()]
    return [words[0] for words in lines if words[2:3] == ["reference"]]


def build(run: Run) -> None:
    """Builds fastssl, unless these sources are built already, and reports spills and ops without a kernel."""
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
        names = f"Plain PyTorch serves {', '.join(missing)}: what smoke says of these ops is nothing new."
        told.append(f"## Ops without a kernel\n\n{names}\n\n```\n{info.output().partition(INFO_TABLE)[0].strip()}\n```")
    if told:
        run.report("build", "\n\n".join(told))
