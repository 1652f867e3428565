"""Tiles measured on a GPU, one file for each op and architecture: ``similarity_sm90.py``. ``benchmarks.tune`` writes them.

A file holds ``TABLE``: (kernel, arithmetic, widest D) -> the fields of a ``TileConfig``. Keys are those of ``tiles.config``
without the family; numbers only, so that loading one compiles nothing. What is not in it comes from the op's own table.
() for a triangular forward says that the other forward is faster.
"""

import functools
import importlib
import pkgutil
import re
from typing import Any

Key = tuple[str, str, int]
Numbers = tuple[Any, ...]  # whole numbers, and at the end a truth value where there is one


def architectures(op: str) -> tuple[int, ...]:
    """Compute capabilities that have a file of the op, ascending."""
    names = (re.fullmatch(rf"{op}_sm(\d+)", found.name) for found in pkgutil.iter_modules(__path__))
    return tuple(sorted(int(name[1]) for name in names if name))


@functools.cache
def table(op: str, arch: int) -> dict[Key, Numbers]:
    """The op's tiles measured on ``arch`` (90); empty where nobody measured."""
    return importlib.import_module(f"{__name__}.{op}_sm{arch}").TABLE if arch in architectures(op) else {}
