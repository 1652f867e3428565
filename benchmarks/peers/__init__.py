"""One adaptor for each library: which workloads it can do, how it is called, and where it must not be tried.

An adaptor module has one ``PEER``. It imports its library only when a form is called, so an absent library becomes a line with a
reason. A form takes the constants of the workload and returns ``call(**inputs) -> loss``, with the objective of ``case.eager``. The
form of an update returns ``bind(state) -> step``, where a step changes the state as that of ``case.eager`` does; ``bind`` may put
views of the library's own memory into the state.

The adaptors import ``fastssl.testing`` and one another, and nothing else of ``benchmarks``.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from fastssl.testing.masked_updates import LEAVES, Forward, forward_backward

#: The peers in the order of the tables; each is a module of this package.
NAMES = (
    "eager",
    "compile",
    "lightly",
    "pytorch_metric_learning",
    "info_nce_pytorch",
    "open_clip",
    "linear_cross_entropy",
    "memeff",
    "inf_cl",
    "cut_cross_entropy",
    "liger",
    "siglip_kernel",
    "loop",
    "moco_repository",
    "mae_repository",
    "dinov2_style",
    "transformers",
    "dense_gradients",
    "timm",
    "averaged_model",
    "fused",
    "update_momentum",
)
#: Keys of ``forms`` for all losses and for all updates; such a form takes the workload itself.
EVERY_LOSS, EVERY_UPDATE = "every loss", "every update"


@dataclass(frozen=True)
class Peer:
    """A library: ``forms[name](**constants) -> call`` for each workload that it can do, or ``forms[EVERY_LOSS](workload) -> call``.

    ``differs[name]``: why this library has no equal objective for a workload. ``max_rows[device]``: rows N above which it is not
    tried, since it would take too much memory or time. ``distribution`` and ``module``: its names for pip and for import; None
    where it is a part of torch.
    """

    name: str
    forms: dict[str, Callable]
    distribution: str | None = None
    module: str | None = None
    differs: dict[str, str] = field(default_factory=dict)
    max_rows: dict[str, int] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs_compile: bool = False

    def version(self) -> str:
        return importlib.metadata.version(self.distribution) if self.distribution else torch.__version__

    def absent(self) -> str:
        """Why the library cannot be imported; "" where it can."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return ""
        return f"{self.distribution} is not installed"

    def form(self, workload) -> Callable | None:
        """A function that makes the call of the workload, or None where this library cannot do it."""
        if workload.name in self.forms:
            return partial(self.forms[workload.name], **workload.constants)
        every = f"every {workload.kind}"
        return partial(self.forms[every], workload) if every in self.forms else None

    def concerns(self, workload) -> bool:
        """Whether a comparison of the workload mentions this library."""
        return workload.name in self.differs or self.form(workload) is not None

    def unfit(self, workload, shape, device: str) -> tuple[str, str]:
        """(status, reason) where the workload is not tried: "absent", "other objective" or "too large"; else ("", "")."""
        if workload.name in self.differs:
            return "other objective", self.differs[workload.name]
        if self.form(workload) is None:
            return "other objective", f"has no {workload.name}"
        if device not in self.devices:
            return "absent", f"runs on {' and '.join(self.devices)} only"
        if reason := self.absent():
            return "absent", reason
        limit = self.max_rows.get(device)
        if limit is not None and workload.rows(shape) > limit:
            return "too large", f"not tried above N = {limit} rows on this device"
        return "", ""

    def build(self, workload) -> Callable:
        return self.form(workload)()


def load(name: str) -> Peer:
    """The adaptor of a library. Raises ValueError for a name that is not in ``NAMES``."""
    if name not in NAMES:
        raise ValueError(f"bench: unknown peer {name!r}; choose from {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}").PEER


def ready_torchvision() -> str:
    """Makes ``import torchvision`` succeed where its operators cannot load. Returns "real", or "stub" where nms is only declared.

    lightly and transformers import torchvision for their transforms. Call this before importing them; a second call does nothing.
    """
    try:
        importlib.import_module("torchvision")
        declared = getattr(ready_torchvision, "declared", False)
        return "stub" if declared else "real"
    except ImportError:
        raise
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    ready_torchvision.declared = True
    importlib.import_module("torchvision")
    return "stub"


def after_torchvision(forward: Forward) -> Forward:
    """The same forward, after torchvision is ready: for a library that imports torchvision where it is installed."""
    with contextlib.suppress(ImportError):
        ready_torchvision()
    return forward


def masked(forwards: dict[str, Forward], prepare: Callable[[Forward], Forward] = lambda forward: forward) -> dict[str, Callable]:
    """The forms of masked image modelling from their forwards; ``prepare`` is applied to a forward before its first use."""

    def form(workload: str, **constants) -> Callable:
        return partial(forward_backward, prepare(forwards[workload]), LEAVES[workload], **constants)

    return {workload: partial(form, workload) for workload in forwards}


def distilled(forwards: dict[str, Forward], prepare: Callable[[Forward], Forward] = lambda forward: forward) -> dict[str, Callable]:
    """The same of soft targets, whose one leaf is the student."""

    def form(workload: str) -> Callable:
        return partial(forward_backward, prepare(forwards[workload]), ("student",))

    return {workload: partial(form, workload) for workload in forwards}


def implementation(name: str, workload) -> Callable:
    """``call(**inputs) -> loss`` or ``bind(state) -> step`` of "fastssl" or of a peer, with the workload's constants bound."""
    return partial(workload.case.ours, **workload.constants) if name == "fastssl" else load(name).build(workload)
