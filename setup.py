"""Builds fastssl/_cpu.so (C++ kernels), fastssl._C (what the host does beside them) and, where there is nvcc, fastssl/_cuda.so;
fastssl/_build.json says what was left out and why. The two .so serve torch 2.11 and every later one, beside any Python. fastssl._C
is for the Python and the minor version of torch that built it; beside others fastssl does its work in Python.

FASTSSL_BUILD=auto|cuda|cpu|none chooses: "auto" builds what the compilers here allow, which may be nothing, "cuda" and "cpu"
fail if they can't, "none" installs pure Python. FASTSSL_CUDA_ARCH="9.0" (or "8.0;9.0") compiles for these GPUs alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
WITHOUT = "FASTSSL_BUILD=none installs fastssl in plain PyTorch, without kernels"
HINT = f"FASTSSL_BUILD=cpu leaves out the CUDA kernels; {WITHOUT}."
# Machine code runs on its own generation, also on later minor versions (10.0 on 10.3). All other GPUs translate the first one's
# PTX, for which none is too old: that of 12.0 would leave out 11.0. No kernel uses what one architecture alone has (as 9.0a would).
ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")


def stop(sentence: str, cause: Exception | None = None) -> None:
    """Ends the build with one sentence, which pip shows last."""
    raise SystemExit(f"fastssl: {sentence}") from cause


def find_ninja() -> str | None:
    """pip puts ninja beside the interpreter or into a package of that name; neither need be on PATH, where torch looks."""
    folders = [str(Path(sys.executable).parent)]
    try:
        import ninja

        folders.append(ninja.BIN_DIR)
    except ImportError:
        pass
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    return shutil.which("ninja")


CPU = "fastssl._cpu"
#: The oldest torch whose stable interface the kernels use.
STABLE_ABI = ("TORCH_TARGET_VERSION", "0x020b000000000000")
CHOICE = os.environ.get("FASTSSL_BUILD", "auto")
ASKED = re.split(r"[;,\s]+", os.environ.get("FASTSSL_CUDA_ARCH", "").strip())
CXX = os.environ.get("CXX", "g++")
NINJA = find_ninja()
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"))
#: Why a library is left out, or None.
NO_CPP = "FASTSSL_BUILD=none was set" if CHOICE == "none" else None if shutil.which(CXX.split()[0]) else f"no C++ compiler ({CXX})"
NO_CUDA = "FASTSSL_BUILD=cpu was set" if CHOICE == "cpu" else NO_CPP or (None if NVCC else "nvcc is not on PATH, nor in CUDA_HOME")

if int(setuptools.__version__.split(".")[0]) < 77:
    stop(f"setuptools 77 or newer builds it, this is {setuptools.__version__}: pip install --upgrade setuptools")
if CHOICE not in ("auto", "cuda", "cpu", "none"):
    stop(f"FASTSSL_BUILD must be auto, cuda, cpu or none, got {CHOICE!r}")
if ASKED != [""] and not all(re.fullmatch(r"\d+\.\d", each) for each in ASKED):
    stop(f'FASTSSL_CUDA_ARCH must name compute capabilities such as "9.0" or "8.0;9.0", got {os.environ["FASTSSL_CUDA_ARCH"]!r}')
if CHOICE in ("cuda", "cpu") and (missing := NO_CPP or (CHOICE == "cuda" and NO_CUDA)):
    stop(f"FASTSSL_BUILD={CHOICE}: {missing}")

torch = cpp = None
if not NO_CPP:
    # pip builds with a path of its own, but by the interpreter of the environment that it installs into: the torch there is meant.
    sys.path += [path for path in {sysconfig.get_path(kind) for kind in ("purelib", "platlib")} if path not in sys.path]
    try:
        import torch
        from torch.utils import cpp_extension as cpp
    except ImportError:
        pass


def refuse() -> None:
    """Ends a build that cannot come to a good end before anything is compiled."""
    if torch is None:
        stop(
            "its kernels are compiled beside a torch, and there is no torch in this environment. Install torch first, then: "
            'pip install . (where a builder hides it, as uv does: pip install "setuptools>=77" ninja, then build with '
            f"--no-build-isolation; {WITHOUT}.)"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        stop(f"it needs torch 2.11 or newer, this is {torch.__version__}")
    if not NO_CUDA and not NINJA:
        stop(f"nvcc is here, but ninja is not, which builds the CUDA kernels: pip install ninja. {HINT}")


def write_record(folder: Path) -> None:
    """What fastssl reads when it is imported: the torch that fastssl._C was built for, and why a library was left out."""
    record = {"torch": str(torch.__version__) if torch else None, "no_cpp": NO_CPP, "no_cuda": NO_CUDA}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(record) + "\n")


def sources_of(folder: str) -> dict[str, list[str]]:
    """The C++ sources of csrc/``folder`` and what they are compiled again for, as an extension takes them."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/{folder}/*.cpp"))
    depends = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".inl"))
    return {"sources": sources, "depends": depends, "include_dirs": [str(ROOT / "csrc")]}


def extensions() -> list[setuptools.Extension]:
    """The kernels, which see torch's stable interface alone and export what fastssl/ops/_cpu_library.py calls, and the module."""
    if cpp is None:
        return [setuptools.Extension(name, []) for name in (CPU, "fastssl._C")]
    # Python's own flags say -g: a quarter of the compile time.
    flags = ["-O3", "-g0", "-std=c++20", "-fno-math-errno", "-Wall", "-Wno-unknown-pragmas"]
    kernels = sources_of("cpu")
    kernels["include_dirs"] += cpp.include_paths()
    library = setuptools.Extension(
        CPU,
        **kernels,
        define_macros=[STABLE_ABI],
        library_dirs=cpp.library_paths(),
        libraries=["stdc++", "torch_cpu"],  # in this order: torch's library exports some of the standard library's functions too
        extra_compile_args=[*flags, "-fvisibility=hidden"],
        extra_link_args=["-Wl,--no-undefined"],
        language="c++",
    )
    return [library, cpp.CppExtension("fastssl._C", **sources_of("python"), extra_compile_args=flags)]


def cuda_codes() -> tuple[str, int]:
    """nvcc's options for machine code of each architecture and PTX of the first one, and how many architectures that are."""
    names = sorted({int(each.replace(".", "")) for each in (ARCHITECTURES if ASKED == [""] else ASKED)})
    if ASKED == [""]:  # an older nvcc lacks the newest
        known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
        names = [name for name in names if f"compute_{name}" in known]
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names[1:]]
    return " ".join([f"-gencode=arch=compute_{names[0]},code=[sm_{names[0]},compute_{names[0]}]", *codes]), len(names)


def build_cuda(library: Path) -> None:
    """csrc/cuda/* by nvcc and ninja to a library that uses torch's stable ABI only.

    Kernels (.cu) see no torch header: each is parsed once for each architecture. The ops around them are plain C++.

    Python keeps torch's libraries out of the process's global scope, so the library names all those whose symbols it uses. One of
    them, libtorch_cuda.so, does not come with a CPU build of torch. An empty library of that name stands for it when linking, so
    that the result is the same beside any torch; at run time the loader finds the one that torch has loaded.

    Registers and spills of every kernel are in build/cuda/*.log; a test reads them.
    """
    sources = sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")])
    build = ROOT / "build" / "cuda"
    build.mkdir(parents=True, exist_ok=True)
    codes, count = cuda_codes()
    includes = " ".join(f"-I{path}" for path in cpp.include_paths())
    common = f"-O3 -std=c++20 -Xcompiler -fPIC -I{ROOT / 'csrc'}"
    kernel = f"{common} -Xptxas -v --threads {count} {codes}"
    op = f"{common} -D{STABLE_ABI[0]}={STABLE_ABI[1]} -DUSE_CUDA {includes}"
    stub = build / "libtorch_cuda.so"
    libraries = " ".join([*(f"-L{folder}" for folder in (build, *cpp.library_paths())), "-ltorch_cuda -ltorch_cpu -lc10"])
    objects = [build / f"{source.name}.o" for source in sources]
    compile = "{nvcc} -MMD -MF $out.d {flags} -c $in -o $out >$out.log 2>&1 || {{ cat $out.log; false; }}"
    lines = [
        *(
            f"rule {name}\n  command = {compile.format(nvcc=NVCC, flags=flags)}\n  depfile = $out.d\n  deps = gcc"
            for name, flags in (("cu", kernel), ("cpp", op))
        ),
        f"rule stub\n  command = {CXX} -shared -Wl,-soname,{stub.name} -x c++ /dev/null -o $out",
        f"rule link\n  command = {NVCC} -shared {codes} $in -o $out -Xlinker --no-as-needed {libraries}",
        f"build {stub}: stub",
        *(f"build {out}: {source.suffix[1:]} {source}" for out, source in zip(objects, sources, strict=True)),
        f"build {library}: link {' '.join(map(str, objects))} | {stub}",
    ]
    (build / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []  # torch's own switch, obeyed for the C++ kernels too
    subprocess.run([NINJA, "-C", str(build), *jobs], check=True)


class BuildPy(build_py):
    def run(self):
        super().run()
        write_record(ROOT / "fastssl" if self.editable_mode else Path(self.build_lib) / "fastssl")


class BuildExt(build_ext if cpp is None else cpp.BuildExtension):
    def get_ext_filename(self, name):
        """The kernels know no Python: their library has none in its name."""
        return os.path.join(*name.split(".")) + ".so" if CPU.endswith(name) else super().get_ext_filename(name)

    def run(self):
        folder = Path(self.get_ext_fullpath("fastssl._C")).resolve().parent  # the package where built in place, else a wheel's
        library = folder / "_cuda.so"
        if not NO_CPP:
            refuse()
            how = "ninja divides them" if NINJA else "pip install ninja would divide them"
            print(f"fastssl: compiling takes about {3 if NO_CUDA else 5} minutes of one core; {how} among the cores")
            try:
                super().run()
                if not NO_CUDA:
                    build_cuda(library)
            except Exception as error:
                stop(f"its kernels did not compile, the compiler's words are above ({error}). {HINT}", error)
        if NO_CUDA and not self.inplace:
            library.unlink(missing_ok=True)  # of an earlier wheel's build
        write_record(folder)


if NO_CPP:
    print(f"fastssl: {NO_CPP}: it is installed in plain PyTorch, without kernels", file=sys.stderr)
setuptools.setup(ext_modules=[] if NO_CPP else extensions(), cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
