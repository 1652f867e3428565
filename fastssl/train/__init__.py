"""The training side of fastssl: data, augmentation, encoders, the Lightning loop, evaluation, pictures, the command line.

Needs the packages of the extra ``train``. ``import fastssl`` does not import this package; nothing here is imported before use.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from fastssl._ending import UsageError, first_process, say, visible
from fastssl.train.recipe import Recipe
from fastssl.train.settings import TrainConfig

__all__ = ["Recipe", "TrainConfig", "UsageError", "broken_torchvision_hidden", "usable_torchvision", "warn"]


def warn(text: str) -> None:
    """Prints a warning, in the first process of a run only."""
    if first_process():
        say(visible(f"warning: {text}"), error=True)


@contextmanager
def broken_torchvision_hidden() -> Iterator[None]:
    """Inside this context a torchvision that cannot be imported looks absent.

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
    absent: Any = None  # what makes ``import torchvision`` raise ModuleNotFoundError
    sys.modules["torchvision"] = absent
    try:
        with mock.patch.object(imports, "_version", version):
            yield
    finally:
        del sys.modules["torchvision"]


def usable_torchvision() -> str | None:
    """Makes ``import torchvision`` work where only its compiled half cannot be loaded. Returns None, or why there is none.

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
