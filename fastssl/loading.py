"""``fastssl.load(RUN)``: the encoder of a run of ``fastssl train`` in one line."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastssl.train.encoders import RunEncoder

__all__ = ["load"]


def load(run: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "RunEncoder":
    """The trained encoder of a run: images (B, C, S, S) of pixels in [0, 1] -> features (B, D), those that ``fastssl eval`` scores.

    Only the checkpoint is read, not the data of the run. Nothing in it is unpickled, and what is damaged, or holds other weights
    than its settings say, is refused. Of a method with a teacher it is the half that is evaluated, which ``role`` names.

    Args:
        run: directory of a run of ``fastssl train``, or a checkpoint file.
        device: where the encoder is put.

    Returns:
        A module in eval mode, with the attributes ``backbone`` (the network alone, without the normalisation), ``image_size`` S,
        ``channels`` C, ``mean`` and ``std`` (which it applies itself), ``num_features`` D, ``method``, ``backbone_name`` and
        ``role``. ``read(path)`` reads an image file as the evaluation does.

    Raises:
        TypeError: ``run`` is no path.
        ValueError: there is no checkpoint that can be used, its method learns from something else than images, or ``device``
            is none of this machine.

    Examples:
        >>> import fastssl
        >>> encoder = fastssl.load("runs/simclr")  # doctest: +SKIP
        >>> encoder(torch.rand(5, encoder.channels, encoder.image_size, encoder.image_size)).shape  # doctest: +SKIP
        torch.Size([5, 256])
    """
    if not isinstance(run, str | os.PathLike) or not os.fspath(run):
        raise TypeError(f"load: run must be the path of a run or of a checkpoint, got {run!r}")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"load: device must name a device of torch, such as cpu or cuda, got {device!r}") from error
    from fastssl._devices import usable_device
    from fastssl._ending import UsageError
    from fastssl.train import warn
    from fastssl.train.encoders import load_run

    try:
        usable_device(str(place))
    except UsageError as error:
        why = str(error).rpartition("cannot be used here: ")[2]
        raise ValueError(f"load: device must be one that computes here, got {str(place)!r}: {why}") from error
    try:
        loaded = load_run(Path(run).expanduser())
    except UsageError as error:
        raise ValueError(f"load: {error}") from error
    if loaded.warning:
        warn(loaded.warning.removeprefix("warning: "))
    return loaded.encoder.to(place)
