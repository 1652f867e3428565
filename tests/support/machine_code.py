"""What is in a file that nvcc made: its architectures, and the instructions of its kernels."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path


def cuobjdump() -> str | None:
    """Beside nvcc, or the one that Triton brings."""
    folders = [None, Path(sys.executable).parent, "/usr/local/cuda/bin"]
    if triton := importlib.util.find_spec("triton"):
        folders.append(Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin")
    return next((tool for folder in folders if (tool := shutil.which("cuobjdump", path=folder and str(folder)))), None)


def _listed(*words: str | Path) -> str:
    return subprocess.run([cuobjdump(), *map(str, words)], capture_output=True, text=True, check=True).stdout


def images(library: Path) -> tuple[set[str], set[str]]:
    """Architectures of the machine code and of the PTX, such as "90" or "100a"."""
    listed = _listed("--list-elf", "--list-ptx", library)
    return set(re.findall(r"sm_(\w+)\.cubin", listed)), set(re.findall(r"sm_(\w+)\.ptx", listed))


def runs_on(gpu: tuple[int, int], machine_code: set[str], ptx: set[str]) -> bool:
    """Machine code runs on its major version from its minor version on, PTX on what is not older; neither elsewhere if specific."""
    as_pair = lambda name: divmod(int(name), 10)  # noqa: E731
    cubins = [as_pair(name) for name in machine_code if name.isdigit()]
    return any(cubin[0] == gpu[0] and cubin <= gpu for cubin in cubins) or any(as_pair(n) <= gpu for n in ptx if n.isdigit())


def memory_accesses(library: Path, architecture: str) -> dict[str, list[str]]:
    """Mangled name of each kernel -> its reads and writes of memory in order, such as LDG.E.128 or STS.64."""
    kernels = re.split(r"Function : ", _listed("-sass", "-arch", f"sm_{architecture}", library))[1:]
    accesses = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ )? *((?:LD|ST)[A-Z]*(?:\.\w+)*)[ ;]")
    return {kernel.split(maxsplit=1)[0]: accesses.findall(kernel) for kernel in kernels}
