"""What the Python blocks of README and docs need beyond what they print, and what must hold after them.

A comment before a block names what it needs, separated by commas:

    <!-- needs: a finished run -->

Each name is a key of ``NEEDS``, or ``GPU``. Its function returns the variables that the block may use, writes files into the folder
that the blocks of a page run in, or skips the page where a library is not installed.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.compat_nets import library

GPU = "a GPU"


class MaskedAutoencoderViT(torch.nn.Module):
    """The methods that ``fastssl.patch`` looks for in the class of the MAE repository."""

    def random_masking(self, x, mask_ratio): ...
    def patchify(self, imgs): ...
    def unpatchify(self, x): ...
    def forward_loss(self, imgs, pred, mask): ...
    def forward_encoder(self, x, mask_ratio): ...
    def forward_decoder(self, x, ids_restore): ...


def _their_classes(folder: Path) -> dict:
    from fastssl.compat import moco

    return {name: type(name, (cls,), {}) for name, cls in (("MaskedAutoencoderViT", MaskedAutoencoderViT), ("MoCo", moco.MoCo))}


def _vit_mae(folder: Path) -> dict:
    theirs = library("transformers.models.vit_mae.modeling_vit_mae")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "decoder_hidden_size": 8, "decoder_intermediate_size": 8}
    layers = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "num_attention_heads": 2, "decoder_num_attention_heads": 2}
    config = theirs.ViTMAEConfig(image_size=32, patch_size=8, **sizes, **layers)
    return {"model": theirs.ViTMAEForPreTraining(config), "pixel_values": torch.rand(2, 3, 32, 32)}


def _lightly(folder: Path) -> dict:
    library("lightly.loss")
    return {}


def _encoder(folder: Path) -> dict:
    return {"encoder": torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 12))}


def _trainer(folder: Path) -> dict:
    library("accelerate")
    pairs = [{"view0": torch.rand(3, 16, 16), "view1": torch.rand(3, 16, 16)} for _ in range(8)]
    return {"transformers": library("transformers"), "pairs": pairs}


def _image_folder(folder: Path) -> dict:
    """PATH: 40 images of each of two classes, of 12 x 12 pixels."""
    for name in ("lightning", "kornia", "skimage", "sklearn"):
        library(name)
    from PIL import Image

    for label in ("dim", "lit"):
        (folder / "PATH" / label).mkdir(parents=True)
        for i in range(40):
            pixels = torch.randint(128, (12, 12, 3)) + 127 * (label == "lit")
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / "PATH" / label / f"{i}.png")
    return {}


def _finished_run(folder: Path) -> dict:
    """RUN: what one epoch of SimCLR on PATH left, and some images of its size."""
    from fastssl.__main__ import main

    _image_folder(folder)
    options = "--data folder:PATH --image-size 16 --batch-size 16 --epochs 1 --workers 0 --map none --accelerator cpu"
    assert main(["train", "simclr", *options.split(), "--out", "RUN"]) == 0
    return {"images": torch.rand(3, 3, 16, 16)}


def _fine_tuned_run(folder: Path) -> dict:
    """RUN: a finished run whose encoder has learned the classes of PATH."""
    from fastssl.__main__ import main

    found = _finished_run(folder)
    assert main(["eval", "RUN", "--fine-tune", "1", "--workers", "0"]) == 0
    return found


NEEDS: dict[str, Callable[[Path], dict]] = {
    "a ViTMAE": _vit_mae,
    "classes of MAE and MoCo": _their_classes,
    "lightly": _lightly,
    "an encoder": _encoder,
    "accelerate": _trainer,
    "a folder of images": _image_folder,
    "a finished run": _finished_run,
    "a fine-tuned run": _fine_tuned_run,
}


def _after_the_page_on_drop_ins(names: dict) -> None:
    from fastssl.compat import mae, moco

    assert names["MaskedAutoencoderViT"].forward_loss._fastssl is mae.forward_loss
    assert names["MoCo"]._dequeue_and_enqueue is moco.MoCo._dequeue_and_enqueue
    assert library("lightly.models.utils").patchify.__module__.startswith("lightly")


def _after_the_page_on_evaluation(names: dict) -> None:
    assert len(names["named"]) == 3 and set(names["named"]) <= {"dim", "lit"}


def _after_the_page_on_data(names: dict) -> None:
    view0, view1, whole = names["view0"], names["view1"], names["whole"]
    assert names["data"].train.__getitems__([0, 3])[0].shape == (2, 3, 80, 80)
    assert view0.shape == view1.shape == (32, 3, 64, 64) and not torch.equal(view0, view1)
    assert whole.shape == (16, 3, 64, 64) and whole.dtype == torch.float32 and names["labels"].tolist() == [0] * 8 + [1] * 8


def _after_the_page_on_momentum(names: dict) -> None:
    assert names["encoder"].weight.grad is not None and names["queue"].queue_ptr.item() == 64


def _after_the_readme(names: dict) -> None:
    assert names["encoder"][1].weight.grad.norm() > 0


#: Page -> a check of the variables that its blocks leave.
HOLDS: dict[str, Callable[[dict], None]] = {
    "README.md": _after_the_readme,
    "docs/compat.md": _after_the_page_on_drop_ins,
    "docs/data.md": _after_the_page_on_data,
    "docs/evaluation.md": _after_the_page_on_evaluation,
    "docs/momentum.md": _after_the_page_on_momentum,
}
