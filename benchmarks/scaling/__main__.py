"""Predicts time, memory and bytes of a loss over many GPUs:  python -m benchmarks.scaling [--rows N] [--world W]

Without options it prints the tables of docs/scaling.md; ``--write`` writes them, and the picture, there.
"""

import argparse
import sys

from benchmarks.scaling import page
from benchmarks.scaling.compute import GPUS, Kernels
from benchmarks.scaling.model import TRANSPORTS, Machine, Problem


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition(":")[0])
    parser.add_argument("--rows", type=int, metavar="N", help="rows of each GPU: predict this size only")
    parser.add_argument("--world", type=int, default=1024, metavar="W", help="number of GPUs")
    parser.add_argument("--width", type=int, default=512, metavar="D", help="width of a row")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the time of a step, for the ring")
    parser.add_argument("--gpu", choices=tuple(GPUS), default=page.GPU)
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md and its picture")
    args = parser.parse_args(argv)
    if args.rows is not None:
        problem = Problem(args.rows, args.width, args.world, noise=args.noise)
        print(f"Predicted for {args.world} {args.gpu}, a batch of {problem.batch:,} rows, D = {args.width}, 16 bits:\n")
        print(page.details(problem, Machine(Kernels.of(args.gpu)), TRANSPORTS))
        return 0
    texts = page.blocks()
    print("\n\n".join(texts.values()))
    if args.write:
        page.PAGE.write_text(page.with_blocks(page.PAGE.read_text(), texts))
        print(f"\n{page.PAGE.name} written, {page.draw().name} drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
