"""Races and bounds of the Triton kernels without a GPU: the cases of ``tests/without_gpu/interpreted`` and the planted faults of
``planted.py``, every launch executed by ttsem (``judge.py``). It wants an environment of its own, that of ``make races``.

python -m tests.races [options of pytest]      all of them, and every load and store of the kernels judged
python -m tests.races -k WORD                  some of the cases
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
