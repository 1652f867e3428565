"""``fastssl info``: versions, compilers, instruction sets, and which implementation serves each op here and why. With ``--measure``
also what this CPU can do at best, beside which times of losses and updates can be judged."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from math import isqrt

import torch

from ._devices import why_no_gpu
from ._lines import broken, columns_of
from ._options import Parser
from ._version import __version__
from .ops import normalize, similarity  # noqa: F401  declare their ops
from .ops._compiled import CUDA_LIBRARY
from .ops._register import _C, OWNERS, why_not_cpp, why_not_cuda, why_not_host, why_not_triton
from .ops.similarity_cross import KEEP_ELEMENTS

#: What a line begins with, below whose end it goes on: an operation and who serves it, or a name.
STARTS = (re.compile(r"[a-z0-9_]+ {2,}(C\+\+|reference) +\S+ +"), re.compile(r"[^:]{15} (?=\S)"))

#: How losses of the statistics of a batch are computed, which torch's matrix products serve on every device.
FORMS = "barlow_twins, vicreg: N x N matrices where N < 3/4 D, D x D matrices otherwise (form=); of float32, by torch's products"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpp_lines() -> list[str]:
    if _C is None:
        return [f"C++ kernels     none: {why_not_cpp}"]
    build = _C.build_info()
    isas = ", ".join(f"[{name}]" if name == _C.isa() else name for name in _C.isas())
    return [
        f"C++ kernels     {build['compiler']}, C++{build['cxx_standard']}, headers of torch {build['torch']}, for 2.11 and newer",
        f"C++ on the host {_host()}",
        f"CPU             {platform.machine()}, {torch.get_num_threads()} threads, instruction sets {isas}",
        f"16-bit units    {', '.join(_C.units()) or 'none'}",
        f"products        {_products()}",
        f"kept            {_kept()}",
    ]


def _host() -> str:
    """What small losses and the checks of lists take: fastssl._C, or Python where that module does not fit."""
    if why_not_host is None:
        return f"fastssl._C for torch {torch.__version__.split('+')[0]} and Python {platform.python_version()}"
    return f"none, Python does its work: {why_not_host}"


def _products() -> str:
    """What computes the matrix products of the losses on this CPU, for each dtype."""
    assert _C is not None
    pairs = "by oneDNN's brgemm" if _C.uses_brgemm() else "in pairs"
    sixteen = f"bfloat16 {pairs}, float16 in float32" if _C.isa() == "avx512_bf16" else "bfloat16 and float16 in float32"
    return f"similarities by tiles of our own: float32, float64, {sixteen}; all others by torch"


def _kept() -> str:
    """Up to which sizes a forward keeps its exponentials (or logits), which spares the backward a product."""
    assert _C is not None
    kept, rows = _C.most_kept()
    triangle = f"NT-Xent and SupCon up to {rows} rows ({kept >> 20} MiB)"
    cross = f"CLIP up to {isqrt(KEEP_ELEMENTS)} pairs ({KEEP_ELEMENTS >> 18} MiB)"
    return f"exponentials for the backward, of any width: {triangle}, {cross}"


def _measured() -> list[str]:
    """What ``--measure`` adds: GFLOP/s and GB/s of all threads together, measured now."""
    from .peaks import memory_rate, peaks

    lines = ["", f"{'at best':28}{'registers':>12}{'tile in L2':>12}   GFLOP/s of {torch.get_num_threads()} threads"]
    for peak in peaks():
        tile = "-" if peak.tile is None else f"{peak.tile / 1e9:.0f}"
        lines.append(f"{peak.name:28}{peak.registers / 1e9:12.0f}{tile:>12}")
    if _C is None:
        lines.append("none: without the C++ kernels there is nothing to measure with")
    return [*lines, f"{'memory':28}{memory_rate() / 1e9:12.1f} GB/s, read and written in place"]


def _nvcc() -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "no nvcc here"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return "nvcc " + (re.findall(r"release ([\d.]+)", text) or ["of unknown version"])[0] + " here"


def _cuda_line() -> str:
    if not CUDA_LIBRARY.exists():
        return f"CUDA C++        none: {why_not_cuda}; {_nvcc()}"
    architectures = sorted(set(re.findall(rb"sm_(\d+)", CUDA_LIBRARY.read_bytes())), key=int)
    loaded = "" if why_not_cuda is None else f"; not loaded: {why_not_cuda}"
    return f"CUDA C++        for {', '.join(f'sm_{name.decode()}' for name in architectures)}; {_nvcc()}{loaded}"


def _gpu_lines() -> list[str]:
    kernels = _cuda_line()
    if not torch.cuda.is_available():
        return [kernels, f"GPU             none: {why_no_gpu()}"]
    gpus = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        gpus.append(f"GPU {index}           {torch.cuda.get_device_name(index)}, sm_{major}{minor}")
    return [kernels, *gpus]


def _no(library: str, why: str | None) -> str:
    """A library that is not there at all is explained once, above the table."""
    return f"no {library}, see above" if why else f"no {library} kernel"


def _why(key: str, owner: str) -> str:
    if key == "CPU" and owner == "reference":
        return _no("C++", why_not_cpp)
    if key == "CUDA" and owner == "reference":
        return f"{_no('CUDA C++', why_not_cuda)}; {_no('Triton', why_not_triton)}"
    return "no CUDA C++ kernel" if owner == "Triton" else ""


def report() -> str:
    """The whole text that ``fastssl info`` prints."""
    lines = [
        f"fastssl         {__version__}, Python {sys.version.split()[0]}",
        f"torch           {torch.__version__}, Triton {_version('triton')}, numpy {_version('numpy')}",
        *_cpp_lines(),
        *_gpu_lines(),
        *([f"Triton kernels  none: {why_not_triton}"] if why_not_triton else []),
        "",
        f"{'op':28}{'CPU':12}CUDA",
    ]
    for op, owners in OWNERS.items():
        reasons = [f"{key}: {why}" for key, owner in owners.items() if (why := _why(key, owner))]
        lines.append(f"{op:28}{owners['CPU']:12}{owners['CUDA']:12}{'; '.join(reasons)}".rstrip())
    lines += ["", FORMS]
    return "\n".join(lines)


def parser() -> Parser:
    """The options of ``fastssl info``."""
    found = Parser("fastssl info", description="What is built, what this machine can run, and what serves each op.")
    measure = "also measure what this CPU can do at best: multiply-adds for each dtype, and its memory; a second"
    found.add_argument("--measure", action="store_true", help=measure)
    found.instead["--config"] = "info has one option, which needs no file"
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints the report, and with ``--measure`` the peaks of this CPU."""
    args = parser().parse_args(argv or [])
    width = columns_of(sys.stdout)
    for line in report().split("\n"):
        indent = next((len(head[0]) for start in STARTS if (head := start.match(line))), 4)
        print(line if width is None else broken(line, width, indent))
    if args.measure:
        print("\n".join(_measured()))
    return 0
