"""The GPU tests on a machine without a GPU:  python tests/gpu/rehearse.py [arguments of pytest]

This needs a C++ compiler, and a torch without CUDA, for which the stand-in is put in. ``rehearsal.py`` says what runs and what does
not.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load_device() -> None:
    """Compiles and loads the stand-in. Torch looks for devices only once, so this is called before torch is imported."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    if (torch / "lib" / "libtorch_cuda.so").exists():
        sys.exit("rehearse.py: this torch has CUDA, whose place the stand-in takes: rehearse with a CPU build of torch")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "device.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", HERE / "rehearsal.cpp"]
        command += ["-o", library, f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(library))


def main(arguments: list[str]) -> int:
    load_device()
    import pytest
    import rehearsal

    rehearsal.start()
    return pytest.main(arguments or [str(HERE)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
