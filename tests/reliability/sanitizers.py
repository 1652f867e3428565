"""The C++ kernels compiled with g++'s sanitizers of addresses and undefined behaviour, over the table of cases.

``csrc/cpu`` is compiled into ``build/sanitized`` beside links to the package, whose Python a child process imports with the
sanitizers' library loaded first. torch itself is not compiled so, but its memory comes from the sanitizer's allocator, so a kernel
that reads or writes beyond a tensor is seen (tensors of 2 MiB and more lie in pages of their own, and are not made here). What a
sanitizer finds ends the child: it costs one case, and is counted. Compiling takes minutes; what was compiled before is kept.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

from fastssl.ops._register import _C
from fastssl.testing.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "sanitized"
CXX = os.environ.get("CXX", "g++")
SANITIZERS = "-fsanitize=address,undefined"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # as in setup.py
FLAGS = ("-O1", "-g1", "-fPIC", "-std=c++20", "-fno-math-errno", "-fvisibility=hidden", "-fno-sanitize-recover=all", STABLE_ABI)
CASE = """
import sys
import torch
import fastssl
from fastssl.ops._register import _C
from fastssl.testing.cases import CASES
from tests.reliability.soak import once

assert fastssl.__file__.startswith(sys.argv[1]), fastssl.__file__
for name in sys.argv[2:]:
    print("at", name, flush=True)
    case, count = CASES[name], 0
    for isa in _C.isas():
        _C.set_isa(isa)
        for shape in case.shapes:
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    once(case, case.inputs(shape, dtype, "cpu", 0))
                    count += 1
    print("done", name, count, flush=True)
"""


def compiled(source: Path) -> Path:
    """The object file of a source, made anew where a source or header is newer."""
    target = PLACE / "objects" / source.with_suffix(".o").name
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file())
    if not target.exists() or target.stat().st_mtime < newest:
        includes = [f"-I{path}" for path in (ROOT / "csrc", *cpp_extension.include_paths())]
        subprocess.run([CXX, *FLAGS, SANITIZERS, *includes, "-c", str(source), "-o", str(target)], check=True)
    return target


def build() -> Path:
    """The folder in which ``fastssl`` has kernels with sanitizers."""
    (PLACE / "objects").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))))
    package = PLACE / "fastssl"
    package.mkdir(exist_ok=True)
    for path in (ROOT / "fastssl").iterdir():
        if path.name != "_cpu.so" and not (package / path.name).exists():
            (package / path.name).symlink_to(path)
    folders = [f"-L{path}" for path in cpp_extension.library_paths()]
    words = [CXX, "-shared", SANITIZERS, "-o", str(package / "_cpu.so"), *map(str, objects)]
    subprocess.run([*words, *folders, "-lstdc++", "-ltorch_cpu"], check=True)
    return PLACE


def child(place: Path, names: list[str]) -> subprocess.CompletedProcess:
    """A process that computes these cases until the sanitizers end it."""
    found = [subprocess.run([CXX, f"-print-file-name=lib{name}.so"], capture_output=True, text=True) for name in ("asan", "ubsan")]
    environment = {
        "LD_PRELOAD": " ".join(each.stdout.strip() for each in found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, thousands
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]),
        "PYTHONSAFEPATH": "1",
    }
    words = [sys.executable, "-c", CASE, str(place), *names]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, cwd=place)


def main(options) -> int:
    if _C is None:
        print("sanitizers: there are no C++ kernels here")
        return 1
    place, left, calls, bad = build(), list(CASES), 0, 0
    while left:
        done = child(place, left)
        ended = [line.split() for line in done.stdout.splitlines() if line.startswith("done")]
        calls += sum(int(count) for _, _, count in ended)
        left = left[len(ended) :]
        if left:
            bad += 1
            print(f"sanitizers: {left.pop(0)} ended with {done.returncode}\n{done.stderr[-3000:]}", flush=True)
    print(f"sanitizers: {len(CASES)} cases, {calls} calls forward and backward")
    return bad
