"""The training side of fastssl: data, augmentation, encoders, the Lightning loop, evaluation, pictures, the command line.

Needs ``pip install fastssl[train]``. ``import fastssl`` does not import this package; nothing here is imported before use.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock


class UsageError(Exception):
    """A wrong option or input; its text is the one line the person reads, naming the option."""


@dataclass(frozen=True)
class TrainConfig:
    """What defines a run: stored in its checkpoints, taken from there on ``--resume``. None: chosen from the data or optimizer."""

    method: str = "simclr"
    data: str = "photos"
    backbone: str = "conv"
    image_size: int | None = None
    epochs: int = 8
    batch_size: int = 256
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    temperature: float = 0.5
    hidden_dim: int | None = None
    projection_dim: int = 128
    min_scale: float = 0.2
    jitter: float = 0.5
    knn_every: int = 2
    knn_k: int = 20
    knn_t: float = 0.1
    seed: int = 0


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
