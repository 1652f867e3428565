"""What the machine may do to a run: damaged files, kills, full disks, and hours of work.

python -m tests.reliability checkpoints --times 500    one check; each prints lines of counts, and its faults
python -m tests.reliability --list                     the checks

docs/reliability.md holds the figures and the command of each.
"""

import argparse
import importlib
import os
import sys
import warnings

CHECKS = {
    "checkpoints": "damaged and hostile checkpoints, read and given to eval and resume",
    "kills": "kill -9 at random points, as many resumes, the same bits in the end",
    "resumes": "stopped after a random step, resumed: the same losses, for six methods",
    "soak": "as long as --minutes: no growth of memory, threads, open files",
    "disks": "full and read-only disks, data and folders that vanish during a run",
    "sanitizers": "the C++ kernels with checks of addresses and undefined behaviour, over the table of cases",
    "threads": "the C++ kernels with a check of threads, over the table of cases, and races planted in copies of them",
    "workers": "loaders that fork and spawn, Python threads in the losses, OpenMP beside MKL: the same bits",
}


def main() -> int:
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", **how)
    parser.add_argument("check", nargs="?", choices=CHECKS, help="one of those that --list shows")
    parser.add_argument("--list", action="store_true", help="say what each check does")
    parser.add_argument("--times", type=int, default=100, help="how many of each kind")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long a check goes on that lasts as long as it is asked to")
    parser.add_argument("--examples", type=int, default=20, help="faults that are shown")
    options = parser.parse_args()
    if options.list or options.check is None:
        print(*(f"{name:<12} {what}" for name, what in CHECKS.items()), sep="\n")
        return 0
    warnings.filterwarnings("ignore")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    bad = importlib.import_module(f"tests.reliability.{options.check}").main(options)
    print(f"{options.check}: {bad} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
