"""What the downstream tasks of ``fastssl eval`` share: the run, the labelled samples that it is asked about, their embeddings."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.train import TrainConfig, UsageError
from fastssl.train.checkpoints import build_method, restore_method
from fastssl.train.recipes import RECIPES
from fastssl.train.rundir import name_beside
from fastssl.train.samples import ImageSamples
from fastssl.train.scores import Table, Value

ENCODERS = ("untrained", "trained")
Half = tuple[Tensor, Tensor]  # features (N, D) and labels (N,)


@dataclass(frozen=True)
class TrainedRun:
    """A run whose encoder is put to work on labelled samples, beside the untrained one.

    Args:
        path: its checkpoint, beside which pictures and weights are written.
        checkpoint: what it holds.
        config: the settings of the run.
        data: what the recipe of the run loads.
        device: where the encoder works.
        workers: processes that read images.
        own: whether the run in the folder is known by this checkpoint.
    """

    path: Path
    checkpoint: dict
    config: TrainConfig
    data: Any
    device: torch.device
    workers: int
    own: bool = True

    def place(self, name: str) -> Path:
        """Where a picture or the weights of a task are written."""
        return self.path.with_name(name_beside(self.path, name, own=self.own))

    @cached_property
    def labelled(self) -> Any:
        """What has labels: the data of the run, or the photographs beside its clips. Raises ``UsageError`` without two classes."""
        data = getattr(self.data, "stills", self.data)
        halves = [getattr(half, "whole", half) for half in (data.train, data.test)]
        if not all(isinstance(getattr(half, "labels", None), Tensor) for half in halves):
            raise UsageError(f"RUN {self.path}: {self.learned_from}; few labels, fine-tuning and retrieval need labels")
        refuse_without_labels(data.name, halves[0].labels, halves[1].labels)
        return replace(data, train=halves[0], test=halves[1])

    @cached_property
    def images(self) -> Any:
        """``labelled`` where these are images; raises ``UsageError`` where they are something else."""
        halves = (self.labelled.train, self.labelled.test)
        if not (hasattr(self.labelled, "image_size") and all(isinstance(half, ImageSamples) for half in halves)):
            raise UsageError(f"RUN {self.path}: {self.learned_from}; fine-tuning and retrieval need images")
        return self.labelled

    def table(
        self,
        task: str,
        heading: str,
        rows: tuple[tuple[str, tuple[Value, ...]], ...],
        *,
        columns: tuple[str, ...],
        names: tuple[str, ...],
    ) -> Table:
        """An answer for ``scores.json``: a ``Table`` of this run on its labelled data, with three decimals."""
        return Table(
            task=task,
            heading=heading,
            data=self.labelled.name,
            checkpoint=self.path.name,
            epoch=self.checkpoint["fastssl"]["history"][-1]["epoch"],
            columns=columns,
            rows=rows,
            names=names,
            forms=(".3f",) * len(rows),
        )

    @property
    def learned_from(self) -> str:
        return f"is one of {self.config.method}, which learns from {RECIPES[self.config.method].unit}"

    def method(self, encoder: str) -> nn.Module:
        """The method of the run as it was before the training or as it is after it: one of ``ENCODERS``."""
        if encoder == "untrained":
            return build_method(self.config, self.data).to(self.device)
        return restore_method(self.checkpoint, self.data, self.path).to(self.device)

    @cached_property
    def embeddings(self) -> dict[str, tuple[Half, Half]]:
        """For each of ``ENCODERS`` the training and the test samples; those that cannot be read are left out."""
        found = {name: self._embedded(self.method(name)) for name in ENCODERS}
        (_, labels), (_, tested) = found["trained"]
        refuse_without_labels(self.labelled.name, labels, tested)
        return found

    def _embedded(self, method: nn.Module) -> tuple[Half, Half]:
        """By the recipe's own ``points``, which embeds the test half of what it is given."""
        points, halves = RECIPES[self.config.method].points, []
        for half in (self.labelled.train, self.labelled.test):
            asked = replace(self.labelled, train=half, test=half)
            data = replace(self.data, stills=asked) if hasattr(self.data, "stills") else asked
            found = points(method, data, device=self.device, workers=self.workers)
            assert found is not None  # there are samples
            halves.append(found[:2])
        return halves[0], halves[1]


def refuse_without_labels(name: str, labels: Tensor, tested: Tensor) -> None:
    """Raises ``UsageError`` where there is nothing to tell apart: less than two classes, or no test image of any of them."""
    if len(labels.unique()) < 2 or not torch.isin(tested, labels).any():
        what = "few labels, fine-tuning and retrieval need test samples, and two classes with samples that can be read"
        raise UsageError(f"--data {name}: {what}; a class is a subfolder with its files")
