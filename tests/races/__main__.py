"""Races and accesses out of bounds of the Triton kernels, found without a GPU. ttsem executes every launch (``judge.py``) of the
cases of ``tests/without_gpu/interpreted`` and of the planted faults of ``planted.py``. ``make races`` makes the environment that
this needs.

python -m tests.races [options of pytest]      runs all of them and fails if a load or store of the kernels was not judged
python -m tests.races -k WORD                  runs some of the cases
"""

import sys
from pathlib import Path

import pytest

FILES = [Path(__file__).parents[1] / "without_gpu" / "interpreted", Path(__file__).with_name("planted.py")]


def main(options: list[str]) -> int:
    every = [] if "-k" in options else ["--every-access"]
    return pytest.main(["-p", "tests.races.judge", "-p", "no:cacheprovider", "-q", *every, *map(str, FILES), *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
