"""These tests run in Triton's interpreter (TRITON_INTERPRET=1) or in ttsem (``python -m tests.races``), and nowhere else."""

import os
import sys
from importlib.util import find_spec

if find_spec("triton") and (os.environ.get("TRITON_INTERPRET") == "1" or "ttsem" in sys.modules):
    from tests.without_gpu.interpreted.fixtures import cheap_types, dots, language_once, poison, products, tiles  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]
