"""The C++ kernels compiled with g++'s sanitizers of addresses and undefined behaviour, over the table of cases.

torch itself is not compiled so, but its memory comes from the sanitizer's allocator, so a kernel that reads or writes beyond a
tensor is seen (tensors of 2 MiB and more lie in pages of their own, and are not made here). A fault planted in a copy of a source
must be reported.
"""

from fastssl.ops._register import _C
from fastssl.testing.cases import CASES

from .instrumented import Build, Planted

BUILD = Build(
    name="sanitized",
    sanitizers=("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    libraries=("asan", "ubsan"),
    environment={"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},  # Python leaks, thousands
    threads=(1, 2),
)
PLANTED = (
    Planted(
        "cpu/nearest_in_groups.cpp", "cpu/nearest_in_groups.cpp", "koleo", "heap-buffer-overflow", "odd_(N_, 0)", "odd_(N_ - 1, 0)"
    ),
)


def main(options) -> int:
    if _C is None:
        print("sanitizers: there are no C++ kernels here")
        return 1
    return BUILD.main("sanitizers", CASES, PLANTED)
