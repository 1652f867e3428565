"""The training side of fastssl: data, augmentation, encoders, the Lightning loop, evaluation, pictures, the command line.

Needs ``pip install fastssl[train]``. ``import fastssl`` does not import this package; nothing here is imported before use.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

from fastssl._ending import UsageError, first_process, say, visible

__all__ = ["Recipe", "TrainConfig", "UsageError", "broken_torchvision_hidden", "usable_torchvision", "warn"]


def warn(text: str) -> None:
    """A line for a person, from the first process of a run only."""
    if first_process():
        say(visible(f"warning: {text}"), error=True)


@dataclass(frozen=True)
class TrainConfig:
    """What defines a run: stored in its checkpoints, taken from there on ``--resume``. None: chosen from the data or optimizer."""

    method: str = "simclr"
    data: str = "photos"
    backbone: str = "conv"
    image_size: int | None = None
    patch_size: int | None = None
    channels: int = 3
    pixel_range: tuple[float, float] | None = None
    epochs: int = 8
    batch_size: int = 256
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    temperature: float = 0.5
    hidden_dim: int | None = None
    projection_dim: int = 128
    queue_size: int | None = None
    head: str = "mlp"
    momentum: float = 0.99
    final_momentum: float = 1.0
    bn_splits: int = 1
    symmetric: bool = False
    labels_per_class: int = 10
    consistency_weight: float = 100.0
    pooler: str = "mean"
    mask_ratio: float = 0.75
    mask_size: int | None = None
    norm_pix_loss: bool = False
    decoder_dim: int = 64
    decoder_depth: int = 2
    corruption: str = "blocks"
    sigma: float = 0.2
    min_scale: float = 0.2
    jitter: float = 0.5
    knn_every: int = 2
    knn_k: int = 20
    knn_t: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """How ``fastssl train`` runs one method; loop, command line and evaluation know no method by name. All are in ``recipes.py``.

    ``data`` is what ``load`` returns: ``name``, ``summary()`` for the first line, and ``train`` and ``test``, data sets with
    ``len`` and ``__getitems__(indices)`` -> one collated tuple of tensors, its first one a row for each sample.
    """

    load: Callable  # (config) -> data
    build: Callable  # (config, data) -> nn.Module, forward(*arguments) -> loss; torch is seeded. Banks and queues are buffers
    augment: Callable  # (config, data) -> nn.Module or None: kept by the loop as ``module.views``
    arguments: Callable  # (module, batch) -> tuple: the method's arguments from a batch on the device; torch is seeded by epoch
    monitor: Callable  # (method, data, config, *, device, workers, most, full) -> {score: value}, {} where nothing can be scored
    points: Callable  # (method, data, *, device, workers) -> features (N, D), labels (N,), class_names of the map, or None
    scores: dict[str, tuple[str, str]]  # of monitor: name in the epoch's line, in the table; the first is drawn, may come alone
    options: tuple[str, ...] = ()  # fields of TrainConfig that this method takes beside ``cli.COMMON``
    defaults: dict = field(default_factory=dict)  # where they differ from TrainConfig's
    watch: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # of monitor, beside scores: the two names, the format
    prepare: Callable | None = None  # (module) -> None, once before the first epoch: fills a bank
    draw: Callable | None = None  # (method, data, folder, *, device) -> path of a picture or None, drawn after each monitor
    help: dict[str, str] = field(default_factory=dict)  # of options, where it is not the command line's
    loss: str = "NT-Xent"
    heading: str = "accuracy on test images"
    unit: str = "images"
    unscored: str = "kNN and linear probe left out: they need test images, and two classes with images that can be read"


@contextmanager
def broken_torchvision_hidden() -> Iterator[None]:
    """While it lasts, a torchvision that cannot be imported looks absent.

    torchmetrics, which lightning imports, imports torchvision whenever its metadata is there; a torchvision built for
    another torch then breaks ``import lightning`` itself. torchvision is optional here, so that must not matter.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        yield
        return
    except Exception:  # RuntimeError: operator torchvision::nms does not exist
        pass
    else:
        yield
        return
    from lightning_utilities.core import imports

    installed = imports._version

    def version(name: str) -> str:
        if name == "torchvision":
            raise imports.PackageNotFoundError(name)
        return installed(name)

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None
    try:
        with mock.patch.object(imports, "_version", version):
            yield
    finally:
        del sys.modules["torchvision"]


def usable_torchvision() -> str | None:
    """Makes ``import torchvision`` work where only its compiled half can't be loaded -> None, or why there is no torchvision.

    Its models and transforms need none of its operators, but their absence makes the import fail: nms is declared, without code.
    """
    import torch

    try:
        importlib.import_module("torchvision")
        return None
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed (pip install {error.name})"
    except Exception as error:  # RuntimeError: operator torchvision::nms does not exist
        reason = f"torchvision cannot be imported: {type(error).__name__}: {str(error).splitlines()[0]}"
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        importlib.import_module("torchvision")
        return None
    except Exception:
        return f"{reason} (install the torchvision that was built for torch {torch.__version__})"
