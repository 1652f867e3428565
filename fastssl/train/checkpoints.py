"""Checkpoints of a run: found, read with care, checked against the data and the method, and made a method again.

A run's folder holds ``last.ckpt`` and, as long as that is being replaced and afterwards, ``previous.ckpt``. What can't be read is
named with its reason, and nothing is written over it.
"""

import errno
import hashlib
import os
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastssl._aside import replaced
from fastssl._ending import Failure, foreseen, machines_own, out_of_memory, visible
from fastssl._options import closest
from fastssl.train import TrainConfig, UsageError
from fastssl.train.allocation import Bounded, TooLarge
from fastssl.train.archives import MoreThanTensors, damage, first_line
from fastssl.train.contents import malformed
from fastssl.train.layout import counted
from fastssl.train.recipes import RECIPES
from fastssl.train.settings import knn_vote

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
ARCHIVE_BYTES = b"PK\x03\x04"
FORMER_NEGATIVES = "local"  # of methods with that setting, in checkpoints that don't have it
FORMER_PATCH = 4  # of --backbone vit in checkpoints that don't say it


class Unreadable(UsageError):
    """A checkpoint is there and cannot be used. The text says which one and why."""


def read_checkpoint(path: Path, *, values: bool = True) -> dict:
    """The checkpoint on the CPU. Raises ``FileNotFoundError`` or ``NotADirectoryError``, and ``Unreadable`` with the reason.

    The archive's own numbers are looked at before torch reads it: a file that claims more than it holds gets no memory. Without
    ``values``, those of the tensors stay on the disk until somebody asks for them, so that nobody looks whether they are whole.
    """
    try:
        if not is_archive(path):
            raise Unreadable(f"{path} cannot be read: it is no checkpoint, or damaged")
        if why := damage(path, checksums=values):
            raise Unreadable(f"{path} cannot be read: it is cut short or damaged ({why})")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=not values and torch_takes(path))
    except (Unreadable, FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        damaged = error.errno == errno.EINVAL  # torch looks for parts where the file has ended
        said = "it is cut short or damaged" if damaged else error.strerror or str(error)
        raise Unreadable(f"{path} cannot be read: {said}") from error
    except MoreThanTensors as error:
        what = f"it is no checkpoint, or holds more than tensors and numbers ({visible(str(error))})"
        raise Unreadable(f"{path} cannot be read: {what}") from error
    except Exception as error:  # torch raises a dozen types by what is wrong
        if out_of_memory(error):
            raise
        why = visible(first_line(error).split(". ")[0])
        raise Unreadable(f"{path} cannot be read: it is cut short or damaged ({why})") from error
    try:
        why = malformed(checkpoint, values=values)
    except Exception as error:  # of another type or shape than any value of a checkpoint has
        if out_of_memory(error):
            raise
        why = f"its contents are damaged ({first_line(error)})"
    if why:
        raise Unreadable(f"{path} cannot be used: {visible(why)}")
    return checkpoint


def is_archive(path: Path) -> bool:
    """Whether the file begins as torch's archives do. Raises ``Unreadable`` for a pipe or a device, which may have no end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Unreadable(f"{path} cannot be read: it is no file")
    with open(path, "rb") as file:
        begins = file.read(4)
    if not begins:
        raise Unreadable(f"{path} cannot be read: the file is empty")
    return begins == ARCHIVE_BYTES


def torch_takes(path: Path) -> bool:
    """Whether torch can map a file into memory by its name: it knows those in UTF-8 only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def write_checkpoint(checkpoint: dict[str, Any], path: Path, *, keep_as: str | None = None) -> None:
    """Writes a checkpoint beside its target, flushes it to disk and renames it; a file that could not be written whole is removed.

    ``keep_as``: the name that a checkpoint which was at ``path`` before gets; without it, that one is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replaced(path) as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
            if keep_as is not None and path.exists():
                os.replace(path, path.with_name(keep_as))
    except (OSError, RuntimeError) as error:
        reason = foreseen(machines_own(error) or error)
        kept = f"; {path} is still the one before" if path.exists() else ""
        raise Failure(f"a checkpoint could not be saved in {path.parent}: {reason or error}{kept}") from error


def find_checkpoint(run: Path) -> tuple[Path, dict] | None:
    """The checkpoint to go on from: ``last.ckpt`` of a run directory, ``previous.ckpt`` where there is no other, or the file.

    None where there is none. Raises ``Unreadable`` for one that can't be used: going on from the one before would replace it.
    """
    paths = (run,) if run.is_file() else (run / LAST, run / PREVIOUS)
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except Unreadable as error:
            raise Unreadable(f"{error}{way_out(run, path)}") from error
    return None


def way_out(run: Path, path: Path) -> str:
    """What to do about an unreadable ``last.ckpt`` where the one before it is whole."""
    before = run / PREVIOUS
    if path != run / LAST or not before.exists():
        return ""
    try:
        epoch = read_checkpoint(before)["fastssl"]["history"][-1]["epoch"]
    except UsageError as error:
        return f"; {error}"
    return f"; {PREVIOUS} beside it is whole, with {epoch} finished epochs: move {LAST} away to go on from that"


def meant(run: Path) -> str:
    """A hint with the run beside a path that is not there whose name is nearest, or nothing."""
    try:
        beside = sorted(path for path in run.parent.iterdir() if (path / LAST).exists() or (path / PREVIOUS).exists())
    except OSError:
        return ""
    return closest(str(run), map(str, beside)) if closest(run.name, [path.name for path in beside]) else ""


def readable_checkpoint(run: Path) -> tuple[Path, dict, str]:
    """For commands that write no checkpoint: the newest that can be used, and a warning about one that can't, or ""."""
    try:
        found = find_checkpoint(run)
    except Unreadable as error:
        before = run / PREVIOUS
        if run.is_file() or not before.exists():
            raise Unreadable(f"RUN {error}" if run.is_file() else f"RUN {run}: {error}") from error
        try:
            return before, read_checkpoint(before), f"warning: {str(error).split(';')[0]}; {before} is taken instead"
        except Unreadable:
            raise Unreadable(f"RUN {run}: {error}") from error
    if found is None:
        why = "there is no checkpoint in it" if run.exists() else f"no such file or directory{meant(run)}"
        raise UsageError(f"RUN {run}: {why}")
    return *found, ""


def own_checkpoint(given: Path, path: Path, checkpoint: dict) -> tuple[Path, dict]:
    """The checkpoint that the run around another one is known by, and what it holds; its weights may stay on the disk.

    Args:
        given: the run or the file that a person named.
        path, checkpoint: what was read of it.

    Returns:
        The newest checkpoint of the run in the same folder; what was read where that is the one, or where no run is there.
    """
    if given.is_file():
        for there in (path.with_name(LAST), path.with_name(PREVIOUS)):
            if path == there:
                break
            try:
                return there, read_checkpoint(there, values=False)
            except (FileNotFoundError, NotADirectoryError, Unreadable):
                continue
    return path, checkpoint


def config_of(checkpoint: dict) -> TrainConfig:
    """The settings of a run.

    Args:
        checkpoint: what ``torch.load`` reads from ``last.ckpt``. Those of before each method had settings of its own hold the
            settings of all methods, of which the run's own are taken.

    Returns:
        The settings, an object of a subclass of ``TrainConfig``.

    Examples:
        >>> config_of({"fastssl": {"config": {"method": "moco", "queue_size": 4096}}}).queue_size
        4096
    """
    stored = checkpoint["fastssl"]["config"]
    settings = RECIPES[stored["method"]].settings
    if "patch_size" not in stored and stored.get("backbone") == "vit":
        stored = {**stored, "patch_size": FORMER_PATCH}
    if "negatives" not in stored:
        stored = {**stored, "negatives": FORMER_NEGATIVES}
    known = {field.name for field in fields(settings)}
    return settings(**{name: value for name, value in stored.items() if name in known})


def fine_tuning_of(checkpoint: dict) -> str:
    """That the encoder learned from labels after the run, as a part of a sentence; "" where it did not."""
    made = checkpoint.get("fine_tuned")
    if made is None:
        return ""
    epochs = made.get("epochs") if isinstance(made, dict) else None
    return "fine-tuned on labels" + (f" for {counted(epochs, 'epoch')}" if isinstance(epochs, int) else "")


def history_of(checkpoint: dict) -> list[dict]:
    """The rows of a run. That of the untrained encoder says how its kNN voted; before it did, that was as the settings say.

    The scores of the run's encoder are not those of the fine-tuned one, whose checkpoint has the same history.
    """
    first, *later = checkpoint["fastssl"]["history"]
    if "fine_tuned" in checkpoint:
        later = [{name: row[name] for name in ("epoch", "loss") if name in row} for row in later]
    if first["epoch"] == 0 and "knn" in first and "knn_k" not in first:
        first = {**first, **knn_vote(config_of(checkpoint))}
    return [first, *later]


def build_method(config: TrainConfig, data: Any) -> nn.Module:
    """The method with a freshly initialised encoder, the same for the same seed."""
    torch.manual_seed(config.seed)
    try:
        return RECIPES[config.method].build(config, data)
    except ValueError as error:
        raise UsageError(f"{config.method} with --backbone {config.backbone}: {first_line(error)}") from error


def restore_method(checkpoint: dict, data: Any, path: Path) -> nn.Module:
    """The method with the weights of a checkpoint, which may be a run on other data than ``data``."""
    weights = method_weights(checkpoint)
    try:
        with Bounded(weights, data):
            method = build_method(config_of(checkpoint), data)
    except TooLarge as error:
        raise Unreadable(f"{path} does not fit: its settings ask for a method far larger than its weights") from error
    for name, tensor in (*method.named_buffers(), *method.named_parameters()):
        there = None if "backbone" in name or "_encoder" in name else weights.get(name)
        most = 1 if isinstance(tensor, nn.Parameter) else 2  # a buffer may have a row for each sample and a column for each class
        if there is not None and tensor.ndim == there.ndim and 1 <= sum(map(int.__ne__, tensor.shape, there.shape)) <= most:
            tensor.data = torch.empty_like(there)  # a bank or queue by the size of the data, a classifier of its classes
    check_weights(method, checkpoint, path)
    method.load_state_dict(weights)
    return method


def method_weights(checkpoint: dict) -> dict[str, Tensor]:
    weights = checkpoint["state_dict"]
    return {name.removeprefix("method."): value for name, value in weights.items() if name.startswith("method.")}


def check_weights(method: nn.Module, checkpoint: dict, path: Path) -> None:
    """Refuses a checkpoint whose weights are not those of ``method`` by name and shape."""
    wanted, there = method.state_dict(), method_weights(checkpoint)
    for name in (*wanted, *there):
        shapes = [str(tuple(half[name].shape)) if name in half else "missing" for half in (wanted, there)]
        if shapes[0] != shapes[1]:
            what = f"{name} is {shapes[1]}, and {shapes[0]} in {config_of(checkpoint).method} as it is built now"
            raise Unreadable(f"{path} does not fit: {what}")


def fingerprint(half: Any) -> dict:
    """What one half of a data set is, for ``check_same_data``: how many samples of which classes, and a digest of files and labels.

    Contents of files are not read.
    """
    half = getattr(half, "whole", half)  # few labels: of the same images
    digest = hashlib.blake2b(digest_size=16)
    for path in getattr(half, "paths", ()):
        digest.update(f"{path.name}\n".encode(errors="surrogateescape"))
    for name in ("labels", "tokens"):
        if isinstance(values := getattr(half, name, None), Tensor):
            digest.update(values.contiguous().numpy().tobytes())
    return {"count": len(half), "classes": list(getattr(half, "class_names", ())), "digest": digest.hexdigest()}


def data_changes(checkpoint: dict, data: Any, unit: str) -> list[str]:
    """What is other in ``data`` than when the run began, a sentence for each half; none where an earlier version noted nothing."""
    stored, sentences = checkpoint["fastssl"].get("data"), []
    for name, key in (("training", "train"), ("test", "test")):
        now, then = fingerprint(getattr(data, key)), stored.get(key) if isinstance(stored, dict) else None
        if not isinstance(then, dict) or now == then:
            continue
        gone, new = ([c for c in a["classes"] if c not in b["classes"]] for a, b in ((then, now), (now, then)))
        changes = [f"classes {word}: {', '.join(map(str, names))}" for word, names in (("gone", gone), ("new", new)) if names]
        if then["count"] != now["count"]:
            changes.append(f"{then['count']} {unit} then, {now['count']} now")
        sentences.append(f"the {name} data changed since the run ({'; '.join(changes) or 'as many, but other ones'})")
    return sentences


def check_same_data(checkpoint: dict, data: Any, unit: str) -> None:
    """A run goes on with the data it began with: bank, classifier, order of the samples and schedule are made for them."""
    spec, noted = config_of(checkpoint).data, isinstance(checkpoint["fastssl"].get("data"), dict)
    if not noted and data.name != spec:  # of an earlier version: only the name is known
        raise UsageError(f"--data {data.name}: the run to resume has {spec}")
    if changes := data_changes(checkpoint, data, unit):
        way = "a run goes on with the data it began with: put it back, or start without --resume"
        raise UsageError(f"--resume: {changes[0]}; {way}")
