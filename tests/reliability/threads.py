"""The C++ kernels compiled with g++'s sanitizer of threads, over the table of cases.

In place of torch's loops over threads, whose OpenMP the sanitizer does not see, ``threads.cpp`` is linked into the kernels: the
same ranges on ``std::thread``, from two items on, in shapes of which most have several tiles. Two Python threads make each call at
once. torch, Python and MKL are not compiled so, and what they do is not looked at. Then races are planted in copies of the sources,
each of which must be reported.
"""

from pathlib import Path

from fastssl.ops._register import _C
from fastssl.testing.cases import CASES

from .instrumented import Build, Planted

BUILD = Build(
    name="threaded",
    sanitizers=("-fsanitize=thread", "-O2"),  # with -O1, g++ 12 lays more arrays of wide vectors at multiples of 16
    libraries=("tsan",),
    environment={"TSAN_OPTIONS": "halt_on_error=1 ignore_noninstrumented_modules=1"},
    threads=(3,),
    callers=2,
    larger=3,
    more=(Path(__file__).with_name("threads.cpp"),),
    linked=("-Wl,-Bsymbolic", "-ldl"),  # the kernels call the loops of threads.cpp, torch its own
)


_RACE = "ThreadSanitizer: data race"
PLANTED = (
    Planted(
        "cpu/nearest_in_groups.cpp",
        "cpu/nearest_in_groups.cpp",
        "koleo",
        _RACE,
        "const std::lock_guard<std::mutex> guard(lock_of(t.i0));",
    ),
    Planted("cpu/schedule.h", "cpu/similarity_triangle.cpp", "nt_xent", _RACE, "memory_order_release", "memory_order_relaxed"),
)


def main(options) -> int:
    if _C is None:
        print("threads: there are no C++ kernels here")
        return 1
    return BUILD.main("threads", CASES, PLANTED)
