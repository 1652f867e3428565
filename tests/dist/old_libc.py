"""Links against the glibc and the libstdc++ of 2018 on a machine that has newer ones, so that a library runs wherever
manylinux_2_28 runs.

glibc keeps the old versions of its functions beside the new ones, but a linker always takes the newest. Here it finds libraries
that have the names of glibc's and hold no code, only each function's newest version up to ``LIMIT``. What libstdc++ has got since
is compiled from its headers into the library that needs it.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

LIMIT = (2, 28)
LIMIT_CXX = {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
#: Since glibc 2.34 these functions are in libc.so.6; before, they were in libraries of their own.
MOVED = {"libdl.so.2": r"dl", "libpthread.so.0": r"(pthread|sem)_", "librt.so.1": r"shm_"}
#: A variable that glibc has since 2.32. libstdc++ reads it to count references without atomic operations; 0 means never.
NEWER = 'char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;\n'
#: Members of string streams that libstdc++ has since GCC 9 and 11, what throws where an array would have too many elements, and how
#: GCC 12 counts who holds an exception: before, copying a pointer to it and destroying one did so, which libstdc++ still exports.
NEWER_CXX = """
#include <exception>
#include <new>
#include <sstream>
extern "C" void old_copy(void*, const void*);
extern "C" void old_destroy(void*);
__asm__(".symver old_copy, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
__asm__(".symver old_destroy, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();
template std::string std::stringbuf::str() const &;
template std::string std::stringbuf::str() &&;
namespace std {
void __throw_bad_array_new_length() { throw std::bad_array_new_length(); }
void __exception_ptr::exception_ptr::_M_addref() noexcept {
  void* never_destroyed;
  old_copy(&never_destroyed, this);
}
void __exception_ptr::exception_ptr::_M_release() noexcept { old_destroy(this); }
}
"""


def version(text: str) -> tuple[int, ...]:
    """``"2.2.5"`` -> ``(2, 2, 5)``"""
    return tuple(int(part) for part in text.split("."))


def functions(library: str) -> dict[str, list[str]]:
    """Each function and object that glibc's ``library`` of this machine gives -> its versions, the oldest first."""
    table = subprocess.run(["readelf", "-W", "--dyn-syms", place(library)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(?:FUNC|IFUNC|OBJECT) +(?:GLOBAL|WEAK) +DEFAULT +\d+ (\w+)@@?GLIBC_([\d.]+)$", table, re.M)
    versions = defaultdict(list)
    for name, each in found:
        versions[name].append(each)
    return {name: sorted(each, key=version) for name, each in versions.items()}


def home(name: str, versions: list[str], library: str) -> str:
    """The library that held the function in glibc 2.28."""
    if library == "libc.so.6" and version(versions[-1]) >= (2, 34):
        return next((old for old, names in MOVED.items() if re.match(names, name)), library)
    return library


def write_stub(folder: Path, library: str, names: dict[str, str]) -> None:
    """A library without code that offers ``names``, each in the version given."""
    nodes = sorted(set(names.values()) | {"2.2.5"}, key=version)
    script = "".join(f"GLIBC_{node} {{}};\n" for node in nodes)
    lines = [f".globl stub_{name}\n.type stub_{name}, @function\nstub_{name}:\n" for name in names]
    lines += [f".symver stub_{name}, {name}@@GLIBC_{each}, remove\n" for name, each in names.items()]
    source, versions = folder / f"{library}.s", folder / f"{library}.map"
    source.write_text(".text\n" + "".join(lines) + '.section .note.GNU-stack,"",@progbits\n')
    versions.write_text(script)
    options = [f"-Wl,-soname,{library}", f"-Wl,--version-script,{versions}", "-nostdlib", "-shared"]
    subprocess.run(["gcc", *options, str(source), "-o", str(folder / library)], check=True)


def place(name: str) -> str:
    """Where gcc finds a library."""
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def add_newer(folder: Path) -> None:
    """Archives of what newer libraries have: ``libnewer.a`` of glibc, ``libnewer_cxx.a`` of libstdc++."""
    for archive, source, text in (("libnewer.a", "newer.c", NEWER), ("libnewer_cxx.a", "newer.cpp", NEWER_CXX)):
        (folder / source).write_text(text)
        standard = ["-std=c++20"] if source.endswith("cpp") else []
        subprocess.run(
            ["g++" if standard else "gcc", *standard, "-O2", "-fPIC", "-c", source, "-o", f"{source}.o"], check=True, cwd=folder
        )
        subprocess.run(["ar", "rcs", archive, f"{source}.o"], check=True, cwd=folder)


def make(folder: Path) -> Path:
    """Fills ``folder``, which a linker then takes before its own: ``-L folder``. Returns it. x86-64 with gcc and binutils only."""
    folder.mkdir(parents=True, exist_ok=True)
    offered: dict[str, dict[str, str]] = {library: {} for library in ("libc.so.6", "libm.so.6", *MOVED)}
    for library in ("libc.so.6", "libm.so.6"):
        for name, versions in functions(library).items():
            if old := [each for each in versions if version(each)[:2] <= LIMIT]:
                offered[home(name, versions, library)][name] = old[-1]
    for library, names in offered.items():
        write_stub(folder, library, names)
    add_newer(folder)
    for library in ("libm.so.6", *MOVED):
        shutil.copy(folder / library, folder / f"{library.partition('.')[0]}.so")
    moved = " ".join(str(folder / library) for library in MOVED)
    parts = f"{folder / 'libc.so.6'} {folder / 'libnewer.a'} {place('libc_nonshared.a')} AS_NEEDED ( {moved} ld-linux-x86-64.so.2 )"
    (folder / "libc.so").write_text(f"GROUP ( {parts} )\n")
    (folder / "libstdc++.so").write_text(f"INPUT ( {folder / 'libnewer_cxx.a'} {place('libstdc++.so.6')} )\n")
    return folder


def too_new(library: Path) -> set[str]:
    """``name@version`` of what a compiled library takes from a glibc or libstdc++ newer than the limits, and the bare names of
    functions of this machine's glibc that it takes in no version, which an older one may lack."""
    table = subprocess.run(["readelf", "-W", "--dyn-syms", str(library)], capture_output=True, text=True, check=True).stdout
    wanted = re.findall(r" UND (\w+)(?:@([A-Z]+)_([\d.]+))?(?: \(\d+\))?$", table, re.M)
    limits = {"GLIBC": LIMIT, **LIMIT_CXX}
    newer = {f"{name}@{of}_{each}" for name, of, each in wanted if of in limits and version(each)[: len(limits[of])] > limits[of]}
    ours = functions("libc.so.6").keys() | functions("libm.so.6").keys()
    return newer | {name for name, of, _ in wanted if not of and name in ours}
