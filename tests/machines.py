"""The numeric tests as other machines would run them: other code paths of the BLAS and of torch, numbers of threads, random inputs.

python -m tests.machines                    all settings, one after the other
python -m tests.machines avx2 unlucky       these
python -m tests.machines --today            one of them, another one each day, over a short set of tests: CI runs it too

No result may rest on the bits of a matrix product, so every setting must pass.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: name -> environment, and arguments of pytest. MKL's settings choose other kernels of the same CPU, in other orders of sums.
SETTINGS = {
    "compatible": ({"MKL_CBWR": "COMPATIBLE"}, []),
    "avx2": ({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, []),
    "plain torch": ({"ATEN_CPU_CAPABILITY": "default"}, []),
    "4 threads": ({"OMP_NUM_THREADS": "4"}, []),
    "seed 1": ({"FASTSSL_TEST_SEED": "1"}, []),
    "seed 2": ({"FASTSSL_TEST_SEED": "2", "MKL_CBWR": "COMPATIBLE"}, []),
    "unlucky": ({}, ["--unlucky"]),
}
SHORT = (
    "ops/test_similarity.py", "loss/test_nt_xent.py", "ops/test_cross_and_sigmoid.py", "momentum/test_ema.py",
    "optim/test_optim_ops.py",
)  # fmt: skip
NUMERIC = (
    *SHORT, "test_ops.py", "loss/test_contrastive.py", "loss/test_row_stats.py", "loss/test_older_losses.py",
    "loss/test_older_losses_peers.py",
    "loss/test_cosine_losses.py", "ops/test_softplus_sum.py", "loss/test_memory_bank.py", "momentum/test_momentum.py",
    "momentum/test_half.py", "momentum/test_queue.py", "optim/test_optim.py", "optim/test_optim_peers.py",
    "masking/test_mask_ids.py", "masking/test_masking_ops.py", "masking/test_token_masks.py", "masking/test_masks.py",
    "compat/test_compat.py",
    "compat/test_compat_masked.py", "compat/test_compat_moco.py", "compat/test_compat_timm.py",
    "ops/test_soft_cross_entropy.py", "ops/test_sinkhorn.py", "loss/test_soft_targets.py", "loss/test_redundancy.py",
    "loss/test_sketched.py", "loss/test_masked_latent.py", "loss/test_neighbours.py", "loss/test_mmcr_tico.py",
    "compat/test_soft_targets.py", "compat/test_redundancy_drop_ins.py",
)  # fmt: skip
#: A run of its own, since Triton's interpreter is chosen when Triton is first imported.
INTERPRETED = ("without_gpu/interpreted",)


def run(name: str, files: tuple[str, ...], extra: list[str]) -> bool:
    environment, arguments = SETTINGS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, *extra]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | environment
    if files == INTERPRETED:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as compiled:  # torch.compile's own cache does not ask which instructions were allowed
        environment["TORCHINDUCTOR_CACHE_DIR"] = compiled
        done = subprocess.run([*command, *(str(ROOT / "tests" / file) for file in files)], env=environment, cwd=ROOT)
    print(f"{name}: {'passed' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"settings: {', '.join(SETTINGS)}")
    parser.add_argument("--today", action="store_true")
    parser.add_argument("--pytest", default="", help="further arguments of pytest, in one string")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in SETTINGS]:
        parser.error(f"expected settings among {', '.join(SETTINGS)}, got {', '.join(unknown)}")
    names = options.names or list(SETTINGS)
    if options.today:
        names = [list(SETTINGS)[datetime.date.today().toordinal() % len(SETTINGS)]]
    runs = [SHORT] if options.today else [NUMERIC, INTERPRETED]
    passed = [run(name, files, options.pytest.split()) for name in names for files in runs]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
