"""setup.py and what it leaves for the import: wheels, sdists, missing tools, libraries that do not fit the torch beside them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastssl.ops import _compiled, _cpu_library
from fastssl.ops._elf import why_unfit
from fastssl.ops._register import why_not_host
from tests.support import machine_code

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
#: Compute capabilities from 8.0 on, of which some have no machine code of their own: 10.3 is a B300, 11.0 a Thor, 14.0 what comes.
GPUS = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (14, 0)]
HIDE_TORCH = "sys.modules['torch'] = None"
#: Enough of torch for setup.py up to the first compiler; the true one takes seconds to import.
TORCH = """
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from types import ModuleType as Module
torch, utils, cpp = Module('torch'), Module('torch.utils'), Module('torch.utils.cpp_extension')
torch.utils, utils.cpp_extension, torch.__version__ = utils, cpp, '2.99.0'
cpp.BuildExtension, cpp.CppExtension = build_ext, Extension
cpp.include_paths = cpp.library_paths = lambda: []
sys.modules |= {'torch': torch, 'torch.utils': utils, 'torch.utils.cpp_extension': cpp}
"""
gcc_only = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")


@pytest.fixture
def tree(tmp_path):
    """setup.py and its fellows as they are, around an empty extension, one CUDA kernel and one op."""
    root = tmp_path / "tree"
    (root / "csrc" / "cuda").mkdir(parents=True)
    (root / "fastssl").mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "fastssl/_version.py"):
        shutil.copy(ROOT / name, root / name)
    (root / "fastssl" / "__init__.py").touch()
    for folder, source in (
        ("cpu", "int kernel() { return 0; }\n"),
        ("python", 'extern "C" void* PyInit__C() { return nullptr; }\n'),
    ):
        (root / "csrc" / folder).mkdir()
        (root / "csrc" / folder / "module.cpp").write_text(source)
    (root / "csrc" / "cuda" / "twice.cu").write_text("__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n")
    (root / "csrc" / "cuda" / "twice.cpp").write_text("#include <torch/csrc/stable/tensor.h>\n")
    return root


def setup(tree: Path, *words: str, before: str = "", **env: str) -> subprocess.CompletedProcess:
    """``python setup.py *words`` in ``tree``, after the statements ``before``, which may hide a module."""
    code = f"import runpy, sys; sys.argv = ['setup.py', *{words!r}]\n{before}\nrunpy.run_path('setup.py', run_name='__main__')"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FASTSSL_")}
    return subprocess.run([sys.executable, "-c", code], env=plain | env, capture_output=True, text=True, cwd=tree)


def members(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def record(folder: Path) -> dict[str, str | None]:
    return json.loads((folder / "_build.json").read_text())


@pytest.mark.skipif(NVCC is None, reason="nvcc is not here")
def test_a_wheel_carries_both_libraries_and_the_sources_stay_as_they_are(tree, tmp_path):
    before = sorted((tree / "fastssl").iterdir())
    built = setup(tree, "bdist_wheel", "--dist-dir", str(tmp_path), FASTSSL_BUILD="cuda")
    assert built.returncode == 0, built.stdout + built.stderr
    assert sorted((tree / "fastssl").iterdir()) == before
    (wheel,) = tmp_path.glob("*.whl")
    names = members(wheel)
    assert {"fastssl/_cpu.so", "fastssl/_cuda.so", "fastssl/_build.json"} <= names and any(
        re.match(r"fastssl/_C\..*so$", name) for name in names
    )
    assert any(name.endswith("LICENSE") for name in names) and "linux" in wheel.name
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (files.read(name).decode() for name in names if name.endswith("METADATA"))
        files.extractall(tmp_path / "wheel")
    assert "License-Expression: MIT" in metadata
    assert record(tmp_path / "wheel" / "fastssl") == {"torch": torch.__version__, "no_cpp": None, "no_cuda": None}
    library = tmp_path / "wheel" / "fastssl" / "_cuda.so"
    if machine_code.cuobjdump():
        built_for = machine_code.images(library)
        assert built_for[0] == {"80", "90", "100", "120"}
        assert [gpu for gpu in GPUS if not machine_code.runs_on(gpu, *built_for)] == []
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert {"libtorch_cuda.so", "libtorch_cpu.so", "libc10.so"} <= set(re.findall(r"NEEDED.*\[(.*)\]", needed))

    again = setup(tree, "build_ext", "--inplace", FASTSSL_BUILD="cuda", FASTSSL_CUDA_ARCH="9.0")
    assert again.returncode == 0, again.stdout + again.stderr
    if machine_code.cuobjdump():
        assert machine_code.images(tree / "fastssl" / "_cuda.so") == ({"90"}, {"90"})

    without = setup(tree, "bdist_wheel", "--dist-dir", str(tmp_path / "cpu"), before=TORCH, FASTSSL_BUILD="cpu")
    assert without.returncode == 0, without.stdout + without.stderr
    (wheel,) = (tmp_path / "cpu").glob("*.whl")
    assert "fastssl/_cuda.so" not in members(wheel), "neither one built earlier nor the one beside the sources"


def test_an_sdist_holds_all_that_a_build_needs(tmp_path):
    words = ("egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path))
    made = setup(ROOT, *words, FASTSSL_BUILD="none")
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    wanted = {path.relative_to(ROOT) for folder in ("csrc", "fastssl") for path in (ROOT / folder).rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in wanted if path.suffix not in (".so", ".pyc") and path.name != "_build.json"}
    assert wanted | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.endswith((".so", "_build.json")) for name in names)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler (no-such-compiler)"),
        ({"FASTSSL_BUILD": "none"}, "FASTSSL_BUILD=none was set"),
    ],
    ids=["no compiler", "none"],
)
def test_without_kernels_the_wheel_is_plain_python_and_says_why(tree, tmp_path, env, reason):
    built = setup(tree, "bdist_wheel", "--dist-dir", str(tmp_path), before=HIDE_TORCH, **env)
    assert built.returncode == 0 and f"fastssl: {reason}" in built.stderr, built.stderr
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "wheel")
    assert record(tmp_path / "wheel" / "fastssl") == {"torch": None, "no_cpp": reason, "no_cuda": reason}
    assert not (tree / "fastssl" / "_build.json").exists()


HIDE_NINJA = f"{TORCH}sys.modules['ninja'] = None; sys.executable = '/nowhere/python'"
OLD_TORCH = f"{TORCH}torch.__version__ = '2.10.1+cpu'"


def test_a_build_that_pip_isolates_takes_the_torch_of_the_environment(tree, tmp_path):
    """Such a build has a path of its own; the environment's folder of packages holds a torch that is too old, which is refused."""
    package = tmp_path / "packages" / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.10.2'\n")
    (package / "utils" / "__init__.py").touch()
    classes = ("setuptools.command.build_ext import build_ext as BuildExtension", "setuptools import Extension as CppExtension")
    lines = [*(f"from {each}" for each in classes), "include_paths = library_paths = lambda: []"]
    (package / "utils" / "cpp_extension.py").write_text("\n".join(lines) + "\n")
    before = (
        "import ninja, setuptools, setuptools.command.build_ext, setuptools.command.build_py, sysconfig\n"
        "sys.path = [path for path in sys.path if 'site-packages' not in path]\n"
        f"sysconfig.get_path = lambda kind: {str(package.parent)!r}"
    )
    tried = setup(tree, "build_ext", "--inplace", before=before, FASTSSL_BUILD="cpu")
    assert "fastssl: it needs torch 2.11 or newer, this is 2.10.2" in tried.stderr, tried.stderr


@pytest.mark.parametrize(
    ("before", "env", "message"),
    [
        (HIDE_TORCH, {}, "no torch in this environment.* pip install .* --no-build-isolation; FASTSSL_BUILD=none"),
        (HIDE_NINJA, {"FASTSSL_BUILD": "cuda"}, "nvcc is here, but ninja is not.*pip install ninja.*FASTSSL_BUILD=cpu"),
        (OLD_TORCH, {}, r"needs torch 2.11 or newer, this is 2.10.1\+cpu"),
        ("import setuptools; setuptools.__version__ = '65.5.0'", {}, "setuptools 77 or newer .* 65.5.0: pip install"),
        ("", {"FASTSSL_BUILD": "fast"}, "FASTSSL_BUILD must be auto, cuda, cpu or none, got 'fast'"),
        ("", {"FASTSSL_BUILD": "cpu", "CXX": "no-such"}, r"FASTSSL_BUILD=cpu: no C\+\+ compiler \(no-such\)"),
        ("", {"FASTSSL_CUDA_ARCH": "sm_90"}, "FASTSSL_CUDA_ARCH must name compute capabilities .*, got 'sm_90'"),
        ("", {"FASTSSL_CUDA_ARCH": "9.0;90a"}, "FASTSSL_CUDA_ARCH must name compute capabilities .*, got '9.0;90a'"),
    ],
    ids=["no torch", "no ninja", "old torch", "old setuptools", "choice", "compiler", "architecture", "specific architecture"],
)
def test_what_cannot_be_built_ends_before_the_compiler_in_one_sentence(tree, tmp_path, before, env, message):
    """A compiler and an nvcc that leave a trace when they are called; no other tool on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("g++", "c++", "gcc", "nvcc"):
        (tools / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/called\nexit 1\n")
        (tools / name).chmod(0o755)
    tried = setup(tree, "build_ext", "--inplace", before=before, PATH=str(tools), **env)
    assert tried.returncode != 0 and re.search(f"^fastssl: .*{message}", tried.stderr, re.M), tried.stderr
    assert "Traceback" not in tried.stderr and not (tmp_path / "called").exists()


@gcc_only
def test_a_compiler_that_fails_ends_with_the_way_around_it(tree):
    (tree / "csrc" / "python" / "module.cpp").write_text("#error not today\n")
    tried = setup(tree, "build_ext", "--inplace", FASTSSL_BUILD="auto")
    assert tried.returncode != 0 and "not today" in tried.stdout + tried.stderr
    assert "Traceback" not in tried.stderr
    assert "FASTSSL_BUILD=none installs fastssl in plain PyTorch" in tried.stderr.splitlines()[-1]
    assert not (tree / "fastssl" / "_build.json").exists()


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder that stands for the package's, where the import looks for setup.py's record and the CUDA library."""
    monkeypatch.setattr(_compiled, "RECORD", tmp_path / "_build.json")
    monkeypatch.setattr(_compiled, "CPU_LIBRARY", tmp_path / "_cpu.so")
    monkeypatch.setattr(_compiled, "CUDA_LIBRARY", tmp_path / "_cuda.so")
    return tmp_path


def test_a_library_that_was_left_out_is_not_loaded_and_its_reason_is_told(beside):
    assert _compiled.load_cuda() == "fastssl/_cuda.so is not built"
    (beside / "_build.json").write_text('{"torch": null, "no_cpp": "no C++ compiler (icc)", "no_cuda": "nvcc is away"}')
    assert _compiled.load_cpu() == (None, "left out when fastssl was installed: no C++ compiler (icc)")
    assert _compiled.load_cuda() == "left out when fastssl was installed: nvcc is away"


@pytest.mark.skipif(sys.platform != "linux" or not (ROOT / "fastssl" / "_cpu.so").exists(), reason="needs a library of Linux")
def test_a_library_that_is_cut_or_of_another_machine_is_refused_in_words(beside):
    """The system's loader would end the process with SIGBUS."""
    whole = (ROOT / "fastssl" / "_cpu.so").read_bytes()
    machine = 8 if whole[18] != 8 else 62  # MIPS
    damaged = {
        "is cut short$": whole[:10],
        f"is cut short: {len(whole) // 2} bytes of {len(whole)}": whole[: len(whole) // 2],
        f"is cut short: {len(whole) - 1} bytes of {len(whole)}": whole[:-1],
        "is no library of Linux": b"MZ" + whole[2:],
        "is for another machine": whole[:18] + bytes([machine, 0]) + whole[20:],
    }
    for why, content in damaged.items():
        (beside / "_cpu.so").write_bytes(content)
        with pytest.warns(RuntimeWarning, match=f"fastssl/_cpu.so is not in use: .*{why}"):
            assert _compiled.load_cpu()[0] is None
    assert why_unfit(ROOT / "fastssl" / "_cpu.so") is None and why_unfit(beside) == f"{beside} is no file"


@pytest.mark.skipif(why_not_host is not None, reason="fastssl._C is not in use")
def test_the_module_of_another_torch_is_refused_in_words_and_the_kernels_are_not(beside, monkeypatch):
    monkeypatch.setattr(_compiled, "CPU_LIBRARY", ROOT / "fastssl" / "_cpu.so")
    major, minor, *_ = torch.__version__.split(".")
    (beside / "_build.json").write_text(json.dumps({"torch": f"{major}.{minor}.77+cu999"}))
    library, why = _compiled.load_cpu()
    assert why is None and _compiled.load_host(library) is None and hasattr(library, "nt_xent")
    for damaged in ("{", "[]", "{}"):
        (beside / "_build.json").write_text(damaged)
        assert _compiled.load_host(library).startswith("fastssl/_build.json does not say which torch it was compiled for. ")
    other = f"{major}.{int(minor) + 1}.0"
    (beside / "_build.json").write_text(json.dumps({"torch": other}))
    library, why = _compiled.load_cpu()
    reason = _compiled.load_host(library)
    assert why is None and not hasattr(library, "nt_xent")
    assert reason.startswith(f"it was compiled for torch {other}, and this is torch {torch.__version__}. ")
    assert "pip install --no-build-isolation" in reason
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.warns(
        RuntimeWarning, match=r"fastssl/_cpu.so is not in use: it needs torch 2.11 or newer, and this is torch 2.10.1"
    ):
        assert _compiled.load_cpu()[0] is None


@gcc_only
def test_the_real_cause_is_told_where_the_cuda_library_does_not_load(beside, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    source = "int torch_has_no_such_thing(void); int call(void) { return torch_has_no_such_thing(); }\n"
    subprocess.run(["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(beside / "_cuda.so")], input=source, text=True, check=True)
    with pytest.warns(RuntimeWarning, match="fastssl/_cuda.so is not in use: .*undefined symbol: torch_has_no_such_thing"):
        assert "undefined symbol: torch_has_no_such_thing" in _compiled.load_cuda()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_another_torch_rebuilds(tmp_path):
    """make's stamp is older than a torch that was installed after it."""
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    version = tmp_path / ".venv/lib/python3.12/site-packages/torch/version.py"
    for path in ("requirements/base.txt", "csrc/a.cpp", str(version.relative_to(tmp_path)), ".venv/bin/python", ".venv/.base"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    stamp = tmp_path / ".venv" / ".built"
    stamp.touch()
    question = ["make", "--question", ".venv/.built"]
    assert subprocess.run(question, cwd=tmp_path).returncode == 0
    later = stamp.stat().st_mtime + 1
    os.utime(version, (later, later))
    assert subprocess.run(question, cwd=tmp_path).returncode == 1


def test_kernels_of_another_version_are_told_from_a_fault(monkeypatch):
    """A source tree that was updated without compiling: torch's own words speak of inferred schemas."""
    from fastssl.ops import _register

    def define(*_):
        raise RuntimeError("Inferred operator schema for a C++ kernel function doesn't match the expected function schema")

    monkeypatch.setattr(_register, "_LIBRARY", SimpleNamespace(define=define))
    with pytest.raises(ImportError, match=r"of another version of it \(similarity_fwd\)\. Compile again"):
        _register.define_op("similarity_fwd", "(Tensor x) -> Tensor", None, "similarity")


@pytest.mark.skipif(not _compiled.CPU_LIBRARY.exists(), reason="there are no C++ kernels here")
def test_kernels_of_other_sources_are_told_from_missing_ones(monkeypatch):
    """As after new sources without a new build."""
    monkeypatch.setitem(_cpu_library._QUESTIONS, "later", None)
    with pytest.raises(ImportError, match=r"other sources than these: .*fastssl_later.* Compile again"):
        _compiled.load_cpu()
