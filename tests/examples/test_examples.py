"""The example scripts at a tiny size, in this process: without and with fastssl they give the same losses."""

import importlib.util
import os
import runpy
import sys

import pytest
import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

import fastssl
from examples._compare import ROUNDING, differences
from tests.support.processes import run_processes
from tests.support.rotation import of_today

pytestmark = pytest.mark.usefixtures("one_thread")

#: script and its options -> the modules that must be installed, besides scikit-learn
SCRIPTS = {
    "lightly.simclr": ("lightly", "torchvision"),
    "lightly.moco --bank 64": ("lightly", "torchvision"),
    "solo_learn.simclr": ("lightning",),
    "pytorch_metric_learning.train": ("pytorch_metric_learning",),
    "pytorch_metric_learning.train --loss SupConLoss": ("pytorch_metric_learning",),
    "open_clip.train": ("open_clip", "ftfy"),
    "open_clip.train --loss siglip": ("open_clip", "ftfy"),
    "moco.main_moco --queue 128": (),
    "moco.main_moco --queue 128 --swap patch": (),
    "dino.main_dino --out_dim 256 --local_crops 2": (),
    "dino.main_dino --out_dim 256 --local_crops 2 --swap patch": (),
    "mae.main_pretrain --accum_iter 2": ("timm",),
    "timm.train --model test_vit": ("timm",),
    "transformers.vit_mae": ("transformers", "accelerate"),
    "transformers.clip": ("transformers", "accelerate"),
    "sentence_transformers.train": ("sentence_transformers",),
    "sentence_transformers.train --loss MultipleNegativesSymmetricRankingLoss": ("sentence_transformers",),
    "grad_cache.train --chunk_size 4": (),
    "retrieval.train --group_size 2": (),
    "info_nce.train --negatives 32": ("info_nce",),
    "supcontrast.main_supcon": (),
    "supcontrast.main_supcon --method SimCLR": (),
}
#: one of each pair a day
PAIRS = {
    "lightly.barlow_vicreg --width 256": ("lightly", "torchvision"),
    "lightly.barlow_vicreg --width 256 --loss VICRegLoss": ("lightly", "torchvision"),
    "lightly.multi_crop --prototypes 64 --local_crops 2": ("lightly", "torchvision"),
    "lightly.multi_crop --prototypes 64 --local_crops 2 --loss SwaVLoss": ("lightly", "torchvision"),
    "dinov2.train --head_n_prototypes 256 --local_crops_number 2": (),
    "dinov2.train --head_n_prototypes 256 --local_crops_number 2 --centering centering": (),
    "swav.main_swav --nmb_prototypes 64 --local_crops 2 --queue_batches 1": (),
    "swav.main_swav --nmb_prototypes 64 --local_crops 2 --queue_batches 1 --swap patch": (),
}
SCRIPTS |= {script: PAIRS[script] for script in of_today(PAIRS, 2)}
#: two imports of Lightning take as long as the other scripts of several processes
TURNS = ("torchrun.lightning_simclr",)
#: scripts of several processes
TOGETHER = (
    "torchrun.simclr",
    "torchrun.simclr --wrap fsdp2 --accumulate 2 --transport ring",
    "grad_cache.train --chunk_size 4",
    *of_today(TURNS, 4),
)


class OursSeen(TorchDispatchMode):
    """Which operations of fastssl ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastssl":
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def result_of(script: str, monkeypatch, *options: str) -> dict:
    """What ``Run.result`` of a script gives; what it patched is put back."""
    module, *words = script.split()
    swapped, patch = [], fastssl.patch
    monkeypatch.setattr(fastssl, "patch", lambda *args: swapped.append(patch(*args)))
    monkeypatch.setattr(sys, "argv", [module, *words, "--batch", "16", "--steps", "3", *options])
    try:
        with OursSeen() as seen:
            run = runpy.run_module(f"examples.{module}", run_name="__main__")["run"]
    finally:
        torch.set_default_dtype(torch.float32)
        monkeypatch.undo()
        for each in swapped:
            each.undo()
    assert bool(seen.names) == ("--fastssl" in options), seen.names
    return run.result()


@pytest.mark.parametrize("script", SCRIPTS)
def test_losses_are_equal_with_fastssl(script, monkeypatch, capsys):
    """In float32 the first loss, since training makes a difference of roundings larger; in float64 all losses."""
    for module in ("sklearn", *SCRIPTS[script]):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    check(script, monkeypatch, "float32", "float64")


def check(script: str, monkeypatch, *dtypes: str) -> None:
    for dtype in dtypes:
        option = ("--float64",) if dtype == "float64" else ()
        apart = differences(*(result_of(script, monkeypatch, *option, *swap) for swap in ((), ("--fastssl",))))
        assert len(apart) >= 3, apart
        assert max(apart[:1] if dtype == "float32" else apart) <= ROUNDING[dtype], dtype


def check_together(rank: int, world: int) -> None:
    """The process group is there already: a script's own calls that make and end it do nothing."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    distributed.init_process_group = distributed.destroy_process_group = lambda *_: None
    for script in TOGETHER:
        if "lightning" in script and importlib.util.find_spec("lightning") is None:
            continue
        check(script, pytest.MonkeyPatch(), "float64")


def test_losses_are_equal_with_fastssl_in_two_processes(tmp_path):
    pytest.importorskip("sklearn")
    run_processes(check_together, 2, tmp_path)
