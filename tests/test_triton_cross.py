"""``similarity_cross``, rows wider than a tile, and products in TF32, in Triton's interpreter: a file of its own, so that another
process can run it."""

import pytest

pytest.importorskip("triton")

from test_triton_similarity import run_in_the_interpreter


def test_in_the_interpreter():
    run_in_the_interpreter("triton_interpreter_cross.py", "triton_interpreter_wide.py", "triton_interpreter_tf32.py")
