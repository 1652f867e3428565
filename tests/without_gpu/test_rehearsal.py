"""The rehearsal of the GPU tests: a few of each file run on a machine without a GPU, on a stand-in for its tensors."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.rotation import every

HERE = Path(__file__).resolve().parents[1] / "gpu"
#: A few tests of each file; all of them:  python tests/gpu/rehearse.py
CHOSEN = {
    "test_cuda.py": "(nt_xent-65x20 and float32 and high) or graph_and_replayed[moco] or host[sup_con]",
    "test_distillation_gpu.py": "(DINO and float16) or waits or 3000-16 or beyond",
    "test_graphs_gpu.py": "test",
    "test_large.py": "queue or a_step or lse or ids_beyond",
    "test_layouts_gpu.py": "mixed",
    "test_masking_gpu.py": "replays or waits",
    "test_masks_gpu.py": "graph and tokens",
    "test_optim_cuda.py": "graph or mixed",
    "test_sanitized.py": "two_sided or update",
    "test_sketches_gpu.py": "waits or 17-1.0",
    "test_specialised.py": "8192-64",
    "test_stand_in.py": "test",
    "test_steps_gpu.py": "test",
    "test_updates.py": "graph or odd or captured",
    "test_wide.py": "2048-512",
}


def test_every_file_is_rehearsed():
    assert {path.name for path in HERE.glob("test_*.py")} == set(CHOSEN)


@pytest.mark.skipif(
    torch.version.cuda is not None, reason="the stand-in takes the place of torch's CUDA; on a GPU the tests themselves run"
)
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
@every(3)
def test_some_of_each_file_pass_on_the_stand_in():
    words = " or ".join(f"({name} and ({chosen}))" for name, chosen in CHOSEN.items())
    command = [sys.executable, str(HERE / "rehearse.py"), str(HERE), "-q", "-rs", "-p", "no:cacheprovider", "-k", words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout and "SKIPPED" not in done.stdout, done.stdout[-3000:] + done.stderr


@every(3)
def test_racecheck_is_asked_about_cuda_cpp_alone():
    """Every kernel of CUDA C++ with shared memory is in its set, and no Triton kernel and no matrix product."""
    command = [sys.executable, "-m", "pytest", str(HERE / "test_sanitized.py"), "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "-m", "racecheck"], capture_output=True, text=True, cwd=HERE.parents[1])
    chosen = set(re.findall(r"::test_\w+\[(\w+)", done.stdout))
    kernels = (HERE.parents[1] / "csrc" / "cuda").glob("*.cu")
    assert chosen >= {path.stem for path in kernels if "__shared__" in path.read_text()}
    tiles = "similarity|sigmoid|siglip|nt_xent|info_nce|test_ranks|test_partial|embed"
    assert not re.search(tiles, done.stdout), done.stdout
