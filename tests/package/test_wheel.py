"""Six lines from a wheel to an encoder in timm, in an empty directory. The wheel has the libraries that are compiled here."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.rotation import of_today

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = "test_resnet"  # of timm, with half a million weights
#: timm imports torchvision, which this makes possible beside a torch that it was not built for.
BEFORE = "from benchmarks.peers import ready_torchvision; ready_torchvision()"
SIX_LINES = """
import fastssl, timm, torch; from fastssl.__main__ import main
fastssl.nt_xent(*torch.randn(2, 8, 4).requires_grad_()).backward()
assert main("train simclr --data digits --backbone timm:NAME --epochs 1 OPTIONS --out run".split()) == 0
assert main("export run --to timm --out encoder".split()) == 0
model = timm.create_model("NAME", num_classes=0, checkpoint_path="encoder/model.safetensors").eval()
assert torch.equal(model(images := torch.rand(4, 3, 32, 32)), fastssl.load("run").backbone(images))
"""
OPTIONS = "--batch-size 256 --map none --workers 0 --accelerator cpu"


def call(*words: str | Path, folder: Path, **env: str) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_wheel(folder: Path) -> Path:
    """setup.py's wheel without kernels, to which the libraries beside the sources are added with setup.py's record of them."""
    build = ("build", "--build-base", folder / "build", "egg_info", "--egg-base", folder)
    call("setup.py", "-q", *build, "bdist_wheel", "--dist-dir", folder / "pure", folder=ROOT, FASTSSL_BUILD="none")
    (pure,) = (folder / "pure").glob("*.whl")
    with zipfile.ZipFile(pure) as files:
        files.extractall(folder / "unpacked")
    compiled = [*(ROOT / "fastssl").glob("*.so")]
    for file in [*compiled, *(ROOT / "fastssl").glob("_build.json")] if compiled else []:
        shutil.copy(file, folder / "unpacked" / "fastssl")
    call("-m", "wheel", "pack", folder / "unpacked", "--dest-dir", folder, folder=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", of_today([BACKBONE], 3))
def test_six_lines_from_a_wheel_to_an_encoder_in_timm(name, tmp_path):
    wheel, site, empty = make_wheel(tmp_path), tmp_path / "site", tmp_path / "empty"
    call("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel, folder=tmp_path)
    empty.mkdir()
    lines = SIX_LINES.replace("NAME", name).replace("OPTIONS", OPTIONS)
    path = os.pathsep.join([str(site), str(ROOT)])
    code = f"{BEFORE}\n{lines}\nprint(fastssl.__file__)"
    said = call("-c", code, folder=empty, PYTHONPATH=path, OMP_NUM_THREADS="1")
    assert said.splitlines()[-1] == str(site / "fastssl" / "__init__.py")
    assert {path.name for path in empty.iterdir()} == {"run", "encoder"}
