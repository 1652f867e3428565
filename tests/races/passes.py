"""Checks what each pass of Triton's compiler makes of the main kernels, in float16 for sm_90, against Triton's interpreter.

python -m tests.races.passes [WORD ...]      checks the launches of ``passes_launches.py`` whose kernels have a WORD in their name

ttsem executes the module that each pass receives, from the kernel's own operations down to the conversion into LLVM, on the memory
that a launch found, and compares the memory that is left with what the interpreter left. The first pass that receives something
else is named, and the exit status is 1. The status is also 1 if a result with one wrong element would pass. LLVM and ptxas come
after these passes and are not checked. bfloat16 is left out, since the interpreter truncates where a GPU rounds.
"""

import dataclasses
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ttsem import harness, mlir, validate

from tests.races import judge

PROGRAM = Path(__file__).with_name("passes_launches.py")
MAIN = ("similarity_", "sigmoid_", "soft_cross_entropy_kernel", "columns")  # not the small kernels between them
RIGHT = ("match", "approx")  # "approx" is within the rounding of sums in another order


def with_a_wrong_element(record):
    """The launch as if the interpreter had left something else in one of the elements that it wrote."""
    written = {name: np.flatnonzero((t != record.pre[name]) & (t == t)) for name, t in record.post.items()}
    name = max(written, key=lambda name: written[name].size)
    wrong = record.post[name].copy()
    wrong.flat[written[name][0]] = 77
    return dataclasses.replace(record, post=record.post | {name: wrong})


def verdict(record, target) -> tuple[int, str]:
    """(1 if a pass changed the result or could not be judged, otherwise 0; a line that says what was found)."""
    stages = validate.split_dump(harness.dump_for_launch(record, target))
    first, *judged, last = validate.validate_stages(record, stages).passes
    if first.verdict in RIGHT or "parse failed" not in first.message:  # ttsem 0.1.0 cannot read what is not yet simplified
        judged.insert(0, first)
    wrong = [p for p in judged if p.verdict not in RIGHT]
    if wrong or "<llvm dialect>" not in last.unsupported:
        bad = (wrong or [last])[0]
        why = bad.message or ", ".join(bad.unsupported) or f"{bad.n_diff} elements differ"
        return 1, f"{bad.verdict} in what this pass receives: {bad.pass_name}: {why}"
    if harness.run_launch(with_a_wrong_element(record), mlir.to_generic(stages[1][1], None)).verdict != "mismatch":
        return 1, "a wrong element was not seen"
    counts = Counter(p.verdict for p in judged)
    return 0, f"{len(judged)} passes receive what the kernel means ({', '.join(f'{n} {v}' for v, n in counts.items())})"


def main(words: list[str]) -> int:
    judge.teach()
    target, status, count = harness.target_for("cpu", judge.ARCH), 0, 0
    for record in harness.capture_launches(PROGRAM, "cpu", judge.ARCH):
        if any(word in record.fn_name for word in words or MAIN):
            start = time.perf_counter()
            wrong, line = verdict(record, target)
            print(f"{record.fn_name} {record.grid}: {line}; {time.perf_counter() - start:.0f} s", flush=True)
            status, count = status | wrong, count + 1
    print(f"{count} launches, {'a fault' if status else 'no fault'}" if count else f"no kernel is named like {words}")
    return status if count else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
