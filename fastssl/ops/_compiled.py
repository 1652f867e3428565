"""The compiled libraries beside this package: loads those that fit this torch, and says why the others are not in use."""

import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path

import torch

from ._cpu_library import CpuLibrary
from ._elf import why_unfit

_PACKAGE = Path(__file__).resolve().parents[1]
CPU_LIBRARY = _PACKAGE / "_cpu.so"
CUDA_LIBRARY = _PACKAGE / "_cuda.so"
RECORD = _PACKAGE / "_build.json"
COMPILE_AGAIN = (
    "Compile again, in fastssl's source tree: pip install --no-build-isolation --no-deps . (-e . where it was installed so)"
)


def _record() -> dict[str, str | None]:
    """What setup.py wrote: the ``torch`` that ``fastssl._C`` was built for, ``no_cpp`` and ``no_cuda`` why a library was left out.
    Empty without it, or where it is damaged."""
    try:
        found = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def _unused(library: str, why: str) -> str:
    """Warns of a library that is there and cannot be used; returns ``why``."""
    warnings.warn(f"fastssl: {library} is not in use: {why}", RuntimeWarning, stacklevel=2)
    return why


def load_cpu() -> tuple[CpuLibrary | None, str | None]:
    """``fastssl/_cpu.so``, which registers the C++ kernels for the CPU key; or None, and why.

    It uses torch's stable C interface, as torch 2.11 has it: it serves every later torch, beside any Python. Raises ImportError
    where it was compiled from other sources than these; what it has registered by then cannot be taken back.
    """
    if not CPU_LIBRARY.exists():
        why = _record().get("no_cpp")
        return None, f"left out when fastssl was installed: {why}" if why else "fastssl/_cpu.so is not built"
    if _minor(torch.__version__) < (2, 11):
        return None, _unused("fastssl/_cpu.so", f"it needs torch 2.11 or newer, and this is torch {torch.__version__}")
    if unfit := why_unfit(CPU_LIBRARY):
        return None, _unused("fastssl/_cpu.so", unfit)
    try:
        return CpuLibrary(CPU_LIBRARY), None
    except AttributeError as error:  # a function that is not there
        raise ImportError(f"fastssl was compiled from other sources than these: {error}. {COMPILE_AGAIN}") from error
    except OSError as error:  # torch's own message names the file alone
        return None, _unused("fastssl/_cpu.so", str(error.__cause__ or error))


def load_host(library: CpuLibrary | None) -> str | None:
    """Lets the module ``fastssl._C`` join the library, or says why not: then Python does what it does, at its own pace.

    The module uses torch's C++ interface, which changes with every minor version: beside another torch it would crash, or worse.
    """
    if library is None:
        return "without the C++ kernels it has nothing to call"
    found = importlib.util.find_spec("fastssl._C")
    if found is None:
        return f"it is not built for Python {sys.version_info.major}.{sys.version_info.minor}"
    built_for = _record().get("torch")
    if not isinstance(built_for, str):
        return f"fastssl/_build.json does not say which torch it was compiled for. {COMPILE_AGAIN}"
    if _minor(built_for) != _minor(torch.__version__):
        return f"it was compiled for torch {built_for}, and this is torch {torch.__version__}. {COMPILE_AGAIN}"
    if found.origin is not None and (unfit := why_unfit(Path(found.origin))):
        return _unused("fastssl._C", unfit)
    try:
        library.join(importlib.import_module("fastssl._C"))
    except (ImportError, RuntimeError) as error:
        return _unused("fastssl._C", str(error))
    return None


def load_cuda() -> str | None:
    """Registers the CUDA C++ kernels, or says why not. Opens no device."""
    if not CUDA_LIBRARY.exists():
        why = _record().get("no_cuda")
        return f"left out when fastssl was installed: {why}" if why else "fastssl/_cuda.so is not built"
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if unfit := why_unfit(CUDA_LIBRARY):
        return _unused("fastssl/_cuda.so", unfit)
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:  # torch's own message names the file alone
        return _unused("fastssl/_cuda.so", str(error.__cause__ or error))
    return None
