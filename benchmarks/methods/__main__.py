"""Trains methods with their defaults and keeps what they reached: ``python -m benchmarks.methods simclr "bert --task nsp"``."""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.methods import table
from benchmarks.methods.runs import measure, save
from fastssl.train.recipes import METHODS


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help='a method, or a method with options: "bert --task nsp"')
    parser.add_argument("--all", action="store_true", help="every method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="write the scores into docs/methods.md from the result files")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the table differs")
    parser.add_argument("--picture", action="store_true", help="draw docs/pictures/methods.png from the result files")
    args = parser.parse_args(argv)
    for run in [*args.runs, *(METHODS if args.all else [])]:
        found = measure(shlex.split(run), args.seed)
        print(f"{run}: {found['cpu_seconds']:.0f} s of CPU, {save(found)}", flush=True)
    if args.table or args.check:
        page = Path(table.PAGE)
        before = page.read_text(encoding="utf-8")
        after = table.written(before)
        if args.check:
            return int(before != after)
        page.write_text(after, encoding="utf-8")
    if args.picture:
        from benchmarks.methods.picture import draw

        print(draw())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
