"""Odd arguments for every public function.

python -m tests.fuzz                                    five seeds, 200 calls each, of every function
python -m tests.fuzz --only nt_xent triplet             these
python -m tests.fuzz --only nt_xent --seed 3 --call 17  one call, in this process, with what is said about it

A refusal must be a TypeError, ValueError or NotImplementedError that begins with the function's name and names an argument, and
leaves everything as it was. A call that is served must give what the same formula gives in float64 on plain tensors, twice the
same, with right gradients, and fake tensors of the same shapes under a FakeTensorMode.
"""

import argparse
import sys
import time
import warnings
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .cases import CASES
from .run import describe, fuzz, kinds_of

#: Kinds of faults, as the last line counts them.
KINDS = {"crash": "crashes", "wrong": "wrong_results", "twice": "wrong_results", "changed": "changed_states"}


def main() -> int:
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", **how)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="functions")
    parser.add_argument("--seeds", type=int, default=5, help="how many (0, 1, ...)")
    parser.add_argument("--calls", type=int, default=200, help="of each seed")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--call", type=int, help="with --only and --seed: this call alone")
    parser.add_argument("--examples", type=int, default=2, help="of each kind of fault")
    options = parser.parse_args()
    cases = {case.name: case for case in CASES}
    if unknown := [name for name in options.only if name not in cases]:
        parser.error(f"--only takes names among {', '.join(cases)}, got {', '.join(unknown)}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # before the children are forked
    with FakeTensorMode():  # what it imports it imports once
        torch.zeros(2).reshape(1, 2)
    chosen = [cases[name] for name in options.only] if options.only else CASES
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    if options.call is not None:
        return _one(chosen[0], seeds[0], options.call)
    bad, total = 0, Counter()
    for case in chosen:
        start = time.monotonic()
        report = fuzz(case, [(seed, number) for seed in seeds for number in range(options.calls)])
        counts = ", ".join(f"{count} {kind}" for kind, count in report.counts.items() if count)
        kinds = kinds_of(report)
        seconds = time.monotonic() - start
        print(
            f"{case.name}: {counts}, {len(report.faults)} faults of {len(kinds)} kinds, {seconds:.1f} s",
            flush=True,
        )
        for faults in kinds.values():
            for seed, number, kind, what, call in faults[: options.examples]:
                print(f"  {kind} [{len(faults)}x] --seed {seed} --call {number}: {what}\n      {call}", flush=True)
        bad += bool(kinds)
        total.update(calls=len(seeds) * options.calls, **Counter(KINDS.get(kind, "others") for _, _, kind, _, _ in report.faults))
    shown = ", ".join(f"{total[kind]} {kind.replace('_', ' ')}" for kind in ("calls", *dict.fromkeys(KINDS.values()), "others"))
    print(f"{len(chosen)} functions, {shown}; {bad} functions with faults", flush=True)
    return 1 if bad else 0


def _one(case, seed: int, number: int) -> int:
    from .judge import judge

    print(describe(case, seed, number))
    verdict = judge(case, seed, number)
    print(verdict)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
