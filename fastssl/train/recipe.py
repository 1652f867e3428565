"""What ``fastssl train`` has to know of a method: its settings, and how it is built, fed and scored."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastssl.train.settings import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """How ``fastssl train`` runs one method. The loop, the command line and the evaluation know no method by name.

    ``config`` stands for an object of ``settings``. ``data`` is what ``load`` returns: it has ``name``, ``summary()`` for the first
    line of a run, and two data sets ``train`` and ``test`` with ``len`` and ``__getitems__(indices)`` -> one collated tuple of
    tensors, of which the first one has a row for each sample. ``module`` is the ``MethodModule`` of ``fastssl.train.loop``.

    Args:
        settings: the dataclass of the method's settings; its ``method`` is the name that the recipe goes by.
        load: (config) -> data.
        build: (config, data) -> the method, a module whose ``forward(*arguments)`` is the loss. Torch is seeded before the call.
            Banks and queues are buffers of the method, so that a checkpoint holds them.
        augment: (config, data) -> a module, which the loop keeps as ``module.views``, or None.
        arguments: (module, batch on the device) -> the arguments of the method, tensors or lists of them. Torch is seeded at the
            first batch of an epoch.
        monitor: (method, data, config, *, device, workers, most, full) -> scores by name, {} where nothing can be scored.
        points: (method, data, *, device, workers) -> features (N, D), labels (N,) and class names for the map, or None.
        scores: names of ``monitor``'s scores -> how the line of an epoch and how the table calls them. The first one is drawn, and
            may come without the others.
        watch: other names of ``monitor``'s -> the same two, and the format of the number.
        refuse: (config, data) -> None, before a new run begins: raises ``UsageError`` for settings that do not fit the data.
        prepare: (module) -> None, once before the first epoch: fills a bank.
        each_round: (module, epoch) -> the training samples (N,) that the epoch takes, in their order, or None for each of them once
            in random order. It is called before the first step of each epoch, which it may prepare, such as by new pseudo-labels,
            and again where a run goes on in the middle of the epoch: what the method's buffers hold of the epoch then stays.
        steady: parts of the method whose learning rate stays at its peak after the warm-up, because each round they start anew.
        draw: (method, data, folder, *, device) -> the path of a picture or None, after each ``monitor``.
        loss: name of the loss, for the help texts and the curves.
        heading: of the table of scores.
        negatives: of a method without the setting ``negatives``: where its negatives come from when several processes train
            together, or "" where it has none.
        encoder: the place in the method, such as "teacher.module", of the backbone whose features of images are scored; "" where
            the features need more of the method than one backbone.
        needs_data: whether ``build`` reads samples or more of the data than the size, the channels, the classes and the number of
            its images, so that the method cannot be built from a checkpoint alone.
        unit: what the samples are, in the plural.
        unscored: the line that says that no score was computed.
    """

    settings: type[TrainConfig]
    load: Callable[[Any], Any]
    build: Callable[[Any, Any], nn.Module]
    augment: Callable[[Any, Any], nn.Module | None]
    arguments: Callable[[Any, tuple[Tensor, ...]], tuple[Any, ...]]
    monitor: Callable[..., dict[str, float]]
    points: Callable[..., tuple[Tensor, Tensor, tuple[str, ...]] | None]
    scores: dict[str, tuple[str, str]]
    watch: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    refuse: Callable[[Any, Any], None] | None = None
    prepare: Callable[[Any], None] | None = None
    each_round: Callable[[Any, int], Tensor | None] | None = None
    steady: tuple[str, ...] = ()
    draw: Callable[..., Any] | None = None
    loss: str = "NT-Xent"
    heading: str = "accuracy on test images"
    negatives: str = ""
    encoder: str = ""
    needs_data: bool = False
    unit: str = "images"
    unscored: str = "kNN and linear probe left out: they need test images, and two classes with images that can be read"
