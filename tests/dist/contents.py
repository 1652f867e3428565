"""What must be in a wheel, and what must not."""

import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

from . import old_libc


def names(wheel: Path) -> list[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as files:
        return files.namelist()


def require(holds: bool, wheel: Path, words: str) -> None:
    """Ends with one sentence about the wheel where something does not hold."""
    if not holds:
        raise SystemExit(f"{wheel.name}: {words}")


def check_python(wheel: Path) -> None:
    """The Python sources, the Triton kernels with their tuned settings, the licence; neither tests nor C++."""
    held = names(wheel)
    for pattern in (r"fastssl/kernels/\w+\.py", r"fastssl/kernels/tuned/\w+\.py", r"fastssl/py\.typed", r"fastssl/_build\.json"):
        require(any(re.fullmatch(pattern, name) for name in held), wheel, f"no file matches {pattern}")
    require(any(name.endswith("LICENSE") for name in held), wheel, "the licence is missing")
    others = [name for name in held if not re.match(r"fastssl(-[^/]+\.dist-info)?/", name)]
    require(not others, wheel, f"these files are not the package's: {others[:5]}")


def check_pure(wheel: Path) -> None:
    """No compiled library, and a name that says so."""
    check_python(wheel)
    require(wheel.name.endswith("-py3-none-any.whl"), wheel, "its name must end in py3-none-any")
    require(not [name for name in names(wheel) if ".so" in name], wheel, "it holds a compiled library")


def check_library(library: Path) -> str | None:
    """What is wrong with a compiled library, or None: it takes all but torch from the system, and no more than an old glibc has."""
    table = subprocess.run(["readelf", "-W", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", table)
    if any("cudart" in name for name in needed):
        return "it needs CUDA's runtime library, which must be linked into it"
    if any("omp.so" in name for name in needed):
        return "it needs OpenMP, which would be another one than torch's; torch's own function divides work among threads"
    if found := re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", table):
        return f"it looks for libraries in a folder of the machine that built it: {found[0]}"
    if newer := old_libc.too_new(library):
        return f"it needs a glibc newer than {'.'.join(map(str, old_libc.LIMIT))}: {', '.join(sorted(newer))}"
    return None


def check_compiled(wheel: Path) -> None:
    """``_cpu.so``, which serves every Python; it and the libraries beside it pass ``check_library``."""
    check_python(wheel)
    require("fastssl/_cpu.so" in names(wheel), wheel, "it lacks fastssl/_cpu.so, the kernels for the CPU")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as files:
        libraries = [files.extract(name, folder) for name in files.namelist() if name.endswith(".so")]
        for library in map(Path, libraries):
            fault = check_library(library)
            require(fault is None, wheel, f"{library.name}: {fault}")
