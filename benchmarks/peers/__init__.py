"""One adaptor for each library: which works it can do, how it is called, and where it must not be tried.

An adaptor module has one ``PEER``. It imports its library only inside ``forms``' builders, so an absent library is a row with
a reason. A form takes the work's constants and returns ``call(**inputs) -> loss`` with the objective of ``case.eager``; the form
of an update returns ``bind(state) -> step``, where a step changes the state as that of ``case.eager`` does. ``bind`` may put views
of the library's own memory into the state.
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

#: In the order of the tables; each is a module of this package.
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
    "transformers",
    "timm",
    "averaged_model",
    "fused",
    "update_momentum",
)
#: Keys of ``forms`` for works of a kind: the form gets the work itself.
EVERY_LOSS, EVERY_UPDATE = "every loss", "every update"


@dataclass(frozen=True)
class Peer:
    """``forms[work](constants) -> call``, or ``forms[EVERY_LOSS](work) -> call``.

    ``differs[work]``: why this library has no equal objective for the work. ``max_rows[device]``: rows N above which it is
    not tried, for memory or time. ``distribution`` and ``module``: what pip and import call it; None: part of torch.
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
        """Empty where the library can be imported; otherwise the reason."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return ""
        return f"{self.distribution} is not installed"

    def form(self, work) -> Callable | None:
        """() -> call of the work, or None where this library has none."""
        if work.name in self.forms:
            return partial(self.forms[work.name], **work.constants)
        every = f"every {work.kind}"
        return partial(self.forms[every], work) if every in self.forms else None

    def concerns(self, work) -> bool:
        """Whether a comparison of the work names this library at all."""
        return work.name in self.differs or self.form(work) is not None

    def unfit(self, work, shape, device: str) -> tuple[str, str]:
        """(status, reason) where the work is not tried: "absent", "other objective" or "too large"; ("", "") where it is."""
        if work.name in self.differs:
            return "other objective", self.differs[work.name]
        if self.form(work) is None:
            return "other objective", f"has no {work.name}"
        if device not in self.devices:
            return "absent", f"runs on {' and '.join(self.devices)} only"
        if reason := self.absent():
            return "absent", reason
        limit = self.max_rows.get(device)
        if limit is not None and work.rows(shape) > limit:
            return "too large", f"not tried above N = {limit} rows on this device"
        return "", ""

    def build(self, work) -> Callable:
        return self.form(work)()


def load(name: str) -> Peer:
    if name not in NAMES:
        raise ValueError(f"bench: unknown peer {name!r}; choose from {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}").PEER


def ready_torchvision() -> str:
    """Makes ``import torchvision`` work where its operators can't load: "real", or "stub" with nms declared, not implemented.

    lightly and transformers import torchvision for their transforms. Call before importing these; calling again does nothing.
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
    """The forward, of a library that imports torchvision where it is installed."""
    with contextlib.suppress(ImportError):
        ready_torchvision()
    return forward


def masked(forwards: dict[str, Forward], prepare: Callable[[Forward], Forward] = lambda forward: forward) -> dict[str, Callable]:
    """Forms of works of masked image modelling from their forwards, each ``prepare``d before its first use."""

    def form(work: str, **constants) -> Callable:
        return partial(forward_backward, prepare(forwards[work]), LEAVES[work], **constants)

    return {work: partial(form, work) for work in forwards}


def implementation(name: str, work) -> Callable:
    """``call(**inputs) -> loss`` or ``bind(state) -> step`` of "fastssl" or of a peer, the work's constants bound."""
    return partial(work.case.ours, **work.constants) if name == "fastssl" else load(name).build(work)
