"""The C++ kernels compiled with sanitizers of g++, and child processes that compute the table of cases with them.

``csrc/cpu`` is compiled into a folder of ``build`` beside a copy of the package, which a child process imports with the
sanitizers' libraries loaded first. torch itself is not compiled so. What a sanitizer finds ends the child: it costs one case, and
is counted. Compiling takes minutes; what was compiled before is kept.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
CXX = os.environ.get("CXX", "g++")
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # as in setup.py
FLAGS = ("-O1", "-g1", "-fPIC", "-std=c++20", "-fno-math-errno", "-fvisibility=hidden", STABLE_ABI)
CASE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import torch
import fastssl
from fastssl.ops._register import _C
from fastssl.testing.cases import CASES
from tests.reliability.soak import once

place, threads, callers, larger, *names = sys.argv[1:]
with open("/proc/self/maps") as maps:
    kernels = {line.split()[-1] for line in maps if line.rstrip().endswith("/_cpu.so")}
assert kernels == {place + "/fastssl/_cpu.so"}, kernels
pool = ThreadPoolExecutor(int(callers)) if int(callers) > 1 else None

def all_at_once(case, shape, dtype):
    if pool is None:
        once(case, case.inputs(shape, dtype, "cpu", 0))
        return 1
    return sum(pool.map(lambda seed: bool(once(case, case.inputs(shape, dtype, "cpu", seed))), range(int(callers))))

for name in names:
    print("at", name, flush=True)
    case, count = CASES[name], 0
    for isa in _C.isas():
        _C.set_isa(isa)
        for shape in (*case.shapes, *[tuple(int(larger) * size for size in case.shapes[-1])] * (larger != "1")):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                for number in map(int, threads.split(",")):
                    torch.set_num_threads(number)
                    count += all_at_once(case, shape, dtype)
    print("done", name, count, flush=True)
"""


@dataclass(frozen=True)
class Planted:
    """A fault: ``before`` of ``file`` becomes ``after``, ``source`` is compiled so, and ``case`` must end with ``words``."""

    file: str
    source: str
    case: str
    words: str
    before: str
    after: str = ""


@dataclass(frozen=True)
class Build:
    """The package in the folder ``name`` of ``build``, with kernels that have ``sanitizers``."""

    name: str
    sanitizers: tuple[str, ...]
    libraries: tuple[str, ...]  # of g++, loaded before Python
    environment: dict[str, str]
    threads: tuple[int, ...]  # of torch, one call each
    callers: int = 1  # Python threads that make each call at once
    larger: int = 1  # another shape, so many times the last one of each case
    more: tuple[Path, ...] = ()  # further sources
    linked: tuple[str, ...] = field(default=())  # further words for the linker

    @property
    def place(self) -> Path:
        return ROOT / "build" / self.name

    def compiled(self, source: Path, sources: Path = SOURCES, folder: str = "objects") -> Path:
        """The object file of a source, made anew where it or a file of ``sources`` is newer."""
        target = self.place / folder / source.with_suffix(".o").name
        newest = max(path.stat().st_mtime for path in (source, *sources.rglob("*")) if path.is_file())
        if not target.exists() or target.stat().st_mtime < newest:
            target.parent.mkdir(parents=True, exist_ok=True)
            includes = [f"-I{path}" for path in (sources, *cpp_extension.include_paths())]
            subprocess.run([CXX, *FLAGS, *self.sanitizers, *includes, "-c", str(source), "-o", str(target)], check=True)
        return target

    def objects(self) -> list[Path]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.compiled, (*sorted((SOURCES / "cpu").glob("*.cpp")), *self.more)))

    def package(self, objects: Iterable[Path], folder: str = ".") -> Path:
        """The folder in which ``fastssl`` has kernels of these object files."""
        place = (self.place / folder).resolve()
        package = place / "fastssl"
        shutil.rmtree(package, ignore_errors=True)
        shutil.copytree(ROOT / "fastssl", package, ignore=shutil.ignore_patterns("_cpu.so", "_cuda.so", "__pycache__"))
        folders = [f"-L{path}" for path in cpp_extension.library_paths()]
        words = [CXX, "-shared", *self.sanitizers, "-o", str(package / "_cpu.so"), *map(str, objects)]
        subprocess.run([*words, *folders, *self.linked, "-lstdc++", "-ltorch_cpu"], check=True)
        return place

    def child(self, place: Path, names: list[str]) -> subprocess.CompletedProcess:
        """A process that computes these cases until a sanitizer ends it."""
        found = [subprocess.run([CXX, f"-print-file-name=lib{name}.so"], capture_output=True, text=True) for name in self.libraries]
        environment = {
            "LD_PRELOAD": " ".join(each.stdout.strip() for each in found),
            "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]),
            "PYTHONSAFEPATH": "1",
            **self.environment,
        }
        words = [
            sys.executable,
            "-c",
            CASE,
            str(place),
            ",".join(map(str, self.threads)),
            str(self.callers),
            str(self.larger),
            *names,
        ]
        return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, cwd=place)

    def sees(self, fault: Planted, objects: Iterable[Path]) -> bool:
        """Whether kernels with this fault end their process with its words."""
        folder = f"planted-{Path(fault.file).stem}"
        sources = self.place / folder / "csrc"
        shutil.copytree(SOURCES, sources, dirs_exist_ok=True)
        text = (sources / fault.file).read_text()
        assert fault.before in text, f"{fault.file} has no {fault.before!r}"
        (sources / fault.file).write_text(text.replace(fault.before, fault.after))
        changed = self.compiled(sources / fault.source, sources, folder)
        place = self.package([changed if each.name == changed.name else each for each in objects], folder)
        done = self.child(place, [fault.case])
        return done.returncode != 0 and fault.words in done.stderr

    def main(self, check: str, names: Iterable[str], planted: Iterable[Planted]) -> int:
        """Computes the cases with these names, prints what was counted, and returns how many faults there are."""
        objects, names = self.objects(), list(names)
        calls, bad = self.over_the_table(check, self.package(objects), names)
        print(f"{check}: {len(names)} cases, {calls} calls forward and backward", flush=True)
        for fault in planted:
            seen = self.sees(fault, objects)
            print(f"{check}: a fault planted in {fault.file} was {'reported' if seen else 'missed'}", flush=True)
            bad += not seen
        return bad

    def over_the_table(self, check: str, place: Path, names: list[str]) -> tuple[int, int]:
        """How many calls ended well, and how many cases ended their process."""
        left, calls, bad = names, 0, 0
        while left:
            done = self.child(place, left)
            ended = [line.split() for line in done.stdout.splitlines() if line.startswith("done")]
            calls += sum(int(count) for _, _, count in ended)
            left = left[len(ended) :]
            if left:
                bad += 1
                print(f"{check}: {left.pop(0)} ended with {done.returncode}\n{done.stderr[-3000:]}", flush=True)
        return calls, bad
