"""These tests run in Triton's interpreter (TRITON_INTERPRET=1) or in ttsem (``python -m tests.races``), and nowhere else."""

import os
import sys

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" or "ttsem" in sys.modules else ["test_*.py"]
