"""``similarity_cross``, the triangular forward, rows wider than a tile, and products in TF32, in Triton's interpreter: a file of
its own, so that another process can run it."""

import pytest

pytest.importorskip("triton")

from test_triton_similarity import run_in_the_interpreter


def test_in_the_interpreter():
    files = ("cross", "triangle", "wide", "tf32")
    run_in_the_interpreter(*(f"triton_interpreter_{name}.py" for name in files))
