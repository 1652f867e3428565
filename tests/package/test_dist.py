"""The programs of tests/dist: linking against an old glibc, what is refused in a wheel, hashes of what is pinned."""

import ctypes
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.dist import contents, environments, hashes, old_libc

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#include <cmath>
#include <dlfcn.h>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <thread>
extern "C" double work(double x) {
  auto sum = std::make_shared<double>(dlsym(RTLD_DEFAULT, "malloc") != nullptr);
  std::exception_ptr thrown;
  std::thread other([sum, x, &thrown] {
    try {
      *sum += std::exp(x) + std::pow(x, 3.0);
      throw std::runtime_error("1000");
    } catch (...) {
      auto first = std::current_exception(), second = first;
      thrown = second;
    }
  });
  other.join();
  std::ostringstream words;
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    words << error.what();
  }
  return *sum + std::stod(words.str());
}
"""
on_linux = pytest.mark.skipif(shutil.which("g++") is None or shutil.which("readelf") is None, reason="no g++ or binutils here")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    made = tmp_path_factory.mktemp("compiled") / "work.o"
    subprocess.run(["g++", "-O1", "-fPIC", "-c", "-xc++", "-", "-o", str(made)], input=SOURCE, text=True, check=True)
    return made


def linked(compiled: Path, folder: Path, *options: str) -> Path:
    library = folder / "work.so"
    subprocess.run(["g++", "-shared", str(compiled), "-o", str(library), *options], check=True)
    return library


@on_linux
def test_a_library_for_an_old_glibc_takes_old_versions_and_works(compiled, tmp_path):
    plain = linked(compiled, tmp_path)
    newest = max(old_libc.version(each) for versions in old_libc.functions("libc.so.6").values() for each in versions)
    assert bool(old_libc.too_new(plain)) == (newest > (2, 32))
    library = linked(compiled, tmp_path, f"-L{old_libc.make(tmp_path / 'old')}", "-Wl,--no-undefined")
    assert contents.check_library(library) is None
    work = ctypes.CDLL(str(library)).work
    work.restype, work.argtypes = ctypes.c_double, [ctypes.c_double]
    assert work(2.0) == pytest.approx(1 + 7.38905609893065 + 8 + 1000)


@on_linux
@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("-Wl,-rpath,/home/me/torch/lib", "looks for libraries in a folder of the machine that built it: /home/me/torch/lib"),
        ("-Wl,--no-as-needed,-l:libcudart.so.13", "needs CUDA's runtime library"),
        ("-Wl,--no-as-needed,-lgomp", "needs OpenMP, which would be another one than torch's"),
    ],
    ids=["path", "cudart", "openmp"],
)
def test_a_library_that_would_work_here_alone_is_refused(compiled, tmp_path, option, fault):
    subprocess.run(["g++", "-shared", "-Wl,-soname,libcudart.so.13", "-o", str(tmp_path / "libcudart.so.13")], check=True)
    assert fault in contents.check_library(linked(compiled, tmp_path, f"-L{tmp_path}", option))


#: The least of what a wheel must hold.
LEAST = ("kernels/a.py", "kernels/tuned/a.py", "py.typed", "_build.json")


def wheel(folder: Path, name: str, *others: str) -> Path:
    with zipfile.ZipFile(folder / name, "w") as files:
        for file in (*(f"fastssl/{each}" for each in LEAST), "fastssl-1.dist-info/licenses/LICENSE", *others):
            files.writestr(file, "")
    return folder / name


@pytest.mark.parametrize(
    ("name", "others", "fault"),
    [
        ("fastssl-1-py3-none-any.whl", ("fastssl/_cpu.so",), "it holds a compiled library"),
        ("fastssl-1-py3-none-any.whl", ("tests/test_ops.py",), "not the package's"),
        ("fastssl-1-cp311-cp311-linux_x86_64.whl", (), "must end in py3-none-any"),
    ],
)
def test_a_wheel_for_all_machines_that_is_not_for_all_is_refused(tmp_path, name, others, fault):
    contents.check_pure(wheel(tmp_path, "fastssl-1-py3-none-any.whl"))
    with pytest.raises(SystemExit, match=fault):
        contents.check_pure(wheel(tmp_path, name, *others))


def test_a_wheel_with_kernels_has_kernels(tmp_path):
    with pytest.raises(SystemExit, match="it lacks fastssl/_cpu"):
        contents.check_compiled(wheel(tmp_path, "fastssl-1-py3-none-any.whl"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("5 passed in 1.00s", {"passed": 5}),
        ("1 failed, 5 passed, 2 skipped, 1 error in 1.00s", {"failed": 1, "passed": 5, "skipped": 2, "error": 1}),
        ("ImportError: no torch", {}),
    ],
)
def test_counts_are_read_from_the_last_line_of_pytest(line, found):
    assert environments.counts(line) == found


def test_the_core_of_the_tests_imports_no_other_file_of_them():
    """It is copied without the rest."""
    imports = r"^ *from tests\.([\w.]+) import ([\w, ]+)"
    for name in environments.CORE:
        for package, names in re.findall(imports, (ROOT / "tests" / name).read_text(), re.M):
            place = package.replace(".", "/")
            inside = [f"{place}/{each}.py" for each in names.split(", ")]
            wanted = inside if (ROOT / "tests" / place).is_dir() else [f"{place}.py"]
            assert set(wanted) <= set(environments.CORE), (name, wanted)


def test_every_pin_has_hashes_of_its_files():
    """requirements/hashes.txt is made anew by ``python -m tests.dist hashes`` after a change of a pin."""
    packages = re.split(r"^(?=\w)", (ROOT / "requirements" / "hashes.txt").read_text(), flags=re.M)[1:]
    locked = {}
    for package in packages:
        name, version = re.match(r"([\w.-]+)==([\w.]+)", package).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", package), name
        locked.setdefault(name.lower(), set()).add(version)
    for file in hashes.RESOLVED:
        pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements" / file).read_text(), re.M)
        for name, version in pins:
            name = re.sub(r"[-_.]+", "-", name.lower())
            assert name in hashes.LEFT_OUT or version in locked.get(name, ()), f"{file}: {name}=={version}"
