"""What a result was measured on and with: device, ISA, threads, versions, commit, load. Imports nothing of ``benchmarks``."""

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

#: Environment variable that carries the commit to processes in a copy without ``.git``.
COMMIT = "FASTSSL_COMMIT"
ROOT = Path(__file__).resolve().parents[2]
_PEERS = (
    "lightly",
    "pytorch-metric-learning",
    "info-nce-pytorch",
    "timm",
    "transformers",
    "memeff",
    "inf_cl",
    "cut-cross-entropy",
    "liger-kernel",
)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kernel_isa() -> str:
    """The ISA that fastssl's C++ kernels chose at run time, or why there are none."""
    try:
        from fastssl import _C
    except ImportError:
        return "none (no C++ build: the PyTorch reference runs)"
    for name in ("isa", "cpu_isa", "selected_isa"):
        if callable(found := getattr(_C, name, None)):
            return str(found())
    return "unknown"


def slug(device: str) -> str:
    """Folder of a device's results: "cpu-avx512-2cores", "nvidia-h200"."""
    if device == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}-{len(os.sched_getaffinity(0))}cores"


def commit() -> str:
    """The short hash of the checkout, with "-dirty" where its source differs from it.

    Outside a checkout it is what ``benchmarks.gpu --commit`` was told.
    """

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("-dirty" if git("status", "--porcelain", "--", ":!benchmarks/results", ":!README.md") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT, "unknown")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(device: str) -> dict:
    """The machine, as a result file describes it."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {package: found for package in ("triton", *_PEERS) if (found := _version(package))}
    info = {
        "slug": slug(device),
        "name": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernel_isa() if device == "cpu" else "Triton",
        "versions": versions,
    }
    if device == "cuda":
        info["cuda"] = torch.version.cuda
        info["matmul_precision"] = torch.backends.cuda.matmul.fp32_precision  # asking by an older name may raise
    return info


def run_stamp() -> dict:
    """When a case was measured, from which commit, and how busy the machine was."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }
