"""Builds fastssl._C (C++ kernels, pybind11) and, where there are CUDA sources and nvcc, fastssl/_cuda.so, with ninja.

FASTSSL_BUILD=auto|cuda|cpu|none chooses: "auto" builds what the compilers here allow and falls back to pure Python with a
warning, "cuda" and "cpu" fail if they can't, "none" installs pure Python.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# pip puts ninja beside the interpreter, which need not be on PATH.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
CUDA_ARCHITECTURES = ("80", "90a", "100a", "120")
CHOICE = os.environ.get("FASTSSL_BUILD", "auto")
if CHOICE not in ("auto", "cuda", "cpu", "none"):
    sys.exit(f"FASTSSL_BUILD must be auto, cuda, cpu or none, got {CHOICE!r}")


def cpp_extension():
    """The extension and its build command, or None for pure Python."""
    if CHOICE == "none":
        return None
    compiler = os.environ.get("CXX", "g++")
    reason = None if shutil.which(compiler.split()[0]) else f"no C++ compiler ({compiler})"
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        reason = "torch is not importable here (build with --no-build-isolation)"
    if reason:
        if CHOICE != "auto":
            sys.exit(f"FASTSSL_BUILD={CHOICE}: {reason}")
        print(f"warning: {reason}; installing fastssl without C++ kernels", file=sys.stderr)
        return None
    cuda = ROOT / "csrc" / "cuda"
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp") if path.parent != cuda)
    headers = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".inl"))
    extension = CppExtension(
        "fastssl._C",
        sources,
        depends=headers,
        include_dirs=[str(ROOT / "csrc")],
        # Without -fopenmp at::parallel_for is a serial loop, in silence. Python's own flags say -g: a quarter of the compile time.
        extra_compile_args=["-O3", "-g0", "-std=c++20", "-fopenmp", "-fno-math-errno", "-Wall", "-Wno-unknown-pragmas"],
        extra_link_args=["-fopenmp"],
    )
    return extension, BuildExtension


def build_cuda() -> None:
    """csrc/cuda/* to fastssl/_cuda.so by nvcc and ninja: stable ABI only, so it needs no CUDA build of torch.

    Kernels (.cu) see no torch header: each is parsed once for each architecture. The ops around them are plain C++.

    Registers and spills of every kernel are in build/cuda/*.log; a test reads them.
    """
    sources = sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")])
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"))
    if CHOICE == "cuda" and not nvcc:
        sys.exit("FASTSSL_BUILD=cuda: nvcc is not on PATH, nor in CUDA_HOME")
    if CHOICE in ("cpu", "none") or not nvcc or not sources:
        return
    import torch.utils.cpp_extension as cpp

    build = ROOT / "build" / "cuda"
    build.mkdir(parents=True, exist_ok=True)
    codes = " ".join(f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES)
    includes = " ".join(f"-I{path}" for path in cpp.include_paths())
    common = f"-O3 -std=c++20 -Xcompiler -fPIC -I{ROOT / 'csrc'}"
    kernel = f"{common} -Xptxas -v --threads {len(CUDA_ARCHITECTURES)} {codes}"
    op = f"{common} -DTORCH_TARGET_VERSION=0x020b000000000000 -DUSE_CUDA {includes}"
    # torch's libraries are not in the global scope of a Python process: unless they are named here, no symbol of theirs is found.
    folders = [Path(path) for path in cpp.library_paths()]
    names = [name for name in ("c10", "torch_cpu", "torch_cuda") if any((f / f"lib{name}.so").exists() for f in folders)]
    torch = " ".join([*(f"-L{folder}" for folder in folders), *(f"-l{name}" for name in names)])
    objects = [build / f"{source.name}.o" for source in sources]
    compile = "{nvcc} -MMD -MF $out.d {flags} -c $in -o $out >$out.log 2>&1 || {{ cat $out.log; false; }}"
    lines = [
        *(
            f"rule {name}\n  command = {compile.format(nvcc=nvcc, flags=flags)}\n  depfile = $out.d\n  deps = gcc"
            for name, flags in (("cu", kernel), ("cpp", op))
        ),
        f"rule link\n  command = {nvcc} -shared {codes} $in -o $out {torch}",
        *(f"build {out}: {source.suffix[1:]} {source}" for out, source in zip(objects, sources, strict=True)),
        f"build {ROOT / 'fastssl' / '_cuda.so'}: link {' '.join(map(str, objects))}",
    ]
    (build / "build.ninja").write_text("\n".join(lines) + "\n")
    subprocess.run(["ninja", "-C", str(build)], check=True)


cpp = cpp_extension()
if cpp is None:
    setup()
else:
    extension, BuildExtension = cpp

    class Build(BuildExtension):
        def run(self):
            super().run()
            build_cuda()

    setup(ext_modules=[extension], cmdclass={"build_ext": Build})
