"""Sound files as waveforms (S,) float32 in [-1, 1] of one channel, decoded when they are asked for.

A class is a subfolder. Folders named train and test (``layout.py``) are the two parts; without them every fifth file of a class is
a test file. WAV files of whole numbers are read by Python's own ``wave``, all others by soundfile.
"""

import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.train import UsageError, warn
from fastssl.train.folder import LOOKED_AT, FolderImages, files_below, unread_line, why
from fastssl.train.layout import TEST, TEST_SHARE, TRAIN
from fastssl.train.read import Misfit, Picture

SUFFIXES = {".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}
MISSING = 'soundfile (pip install soundfile, or the extra "fastssl[audio]")'


def fitted(waveforms: Tensor, samples: int) -> Tensor:
    """The middle of sounds (..., S'), or the whole with silence around it -> (..., samples)."""
    missing = samples - waveforms.shape[-1]
    if missing >= 0:
        return torch.nn.functional.pad(waveforms, (missing // 2, missing - missing // 2))
    return waveforms[..., -missing // 2 : -missing // 2 + samples].contiguous()


def reader() -> Any:
    """The module ``soundfile``, or None where it or its library is missing."""
    try:
        import soundfile
    except (ImportError, OSError):
        return None
    return soundfile


def read_wave(path: Path) -> tuple[np.ndarray, int]:
    """A WAV file of whole numbers -> samples (T, channels) float32 in [-1, 1], and how many there are a second."""
    with wave.open(str(path)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        content = file.readframes(file.getnframes())
    content = content[: len(content) // (width * channels) * width * channels]
    if width == 1:
        whole = np.frombuffer(content, np.uint8).astype(np.int32) - 128
    elif width == 3:
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        whole = padded.view("<i4")[:, 0] >> 8
    else:
        whole = np.frombuffer(content, f"<i{width}")
    return (whole.reshape(-1, channels) / 2.0 ** (8 * width - 1)).astype(np.float32), rate


def read_sound(path: Path, rate: int) -> Tensor:
    """A sound file as the mean of its channels, with ``rate`` samples a second.

    Args:
        path: the file.
        rate: samples a second of the result.

    Returns:
        (T,) float32.

    Raises:
        Misfit: a file without samples or with NaN, or one that needs soundfile where that is not installed.
        Exception: what the decoders raise for damaged files.
    """
    from scipy.signal import resample_poly

    try:
        if path.suffix.lower() != ".wav":
            raise wave.Error("no WAV file")
        sound, own = read_wave(path)
    except wave.Error:  # of floats, too
        soundfile = reader()
        if soundfile is None:
            raise Misfit(f"it needs {MISSING}") from None
        sound, own = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(sound) or not np.isfinite(sound).all():
        raise Misfit("no samples in it" if not len(sound) else "samples that are NaN or infinite")
    mono, common = sound.mean(1), math.gcd(rate, own)
    return torch.from_numpy(mono if own == rate else resample_poly(mono, rate // common, own // common).astype(np.float32))


class FolderSounds(FolderImages):
    """Sound files: a batch is waveforms (B, size) and labels (B,). What cannot be read is left out and marked in ``corrupt``."""

    def __init__(self, paths: list[Path], labels: list[int], class_names: tuple[str, ...], size: int, rate: int):
        super().__init__(paths, labels, class_names, size)
        self.rate = rate

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        decoded = [(sound, index) for index in indices if (sound := self._decode(index)) is not None]
        index = torch.tensor([index for _, index in decoded], dtype=torch.int64)
        return torch.stack([sound for sound, _ in decoded]) if decoded else torch.empty(0, self.size), self.labels[index]

    def read(self, index: int) -> Picture:
        """The samples (size,) of a sound, in place of a picture's pixels."""
        return Picture(fitted(read_sound(self.paths[index], self.rate), self.size), "sound", (self.size, 1))

    def reason(self, file: str) -> str:
        try:
            read_sound(Path(file), self.rate)
        except Exception as error:
            return sound_fault(error)
        return "it could not be read before"


def sound_fault(error: Exception) -> str:
    """Why a sound file cannot be used, for a person."""
    return str(error) if isinstance(error, Misfit) else why(error).replace("image", "sound file")


def files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The sound files at any depth of ``folder``, in order, by subfolder, "" for those that lie in none; without hidden ones."""
    found: dict[str, list[Path]] = {}
    for path in files_below(folder, SUFFIXES):
        inside = path.relative_to(folder).parts
        found.setdefault(inside[0] if len(inside) > 1 else "", []).append(path)
    return found


def find_sounds(root: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The files of the training and the test part below ``root``, by class."""
    if not root.is_dir():
        raise UsageError(f"--data folder:{root}: there is no such folder")
    named = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    parts = [next((named[name] for name in names if name in named), None) for names in (TRAIN, TEST)]
    train = files_by_class(parts[0] or root)
    if not train:
        raise UsageError(f"--data folder:{root}: no sound files in it ({' '.join(sorted(SUFFIXES))})")
    if parts[0] is not None and parts[1] is not None:
        return train, files_by_class(parts[1])
    kept = {name: [file for i, file in enumerate(files) if (i + 1) % TEST_SHARE] for name, files in train.items()}
    return kept, {name: files[TEST_SHARE - 1 :: TEST_SHARE] for name, files in train.items()}


def sound_folder(root: Path, rate: int, samples: int) -> tuple[FolderSounds, FolderSounds]:
    """The training and the test half of the sound files below ``root``; warns of those looked at that cannot be read."""
    parts = find_sounds(root)
    others = sorted({file.suffix.lower() for part in parts for files in part.values() for file in files} - {".wav"})
    if others and reader() is None:
        raise UsageError(f"--data folder:{root}: {' '.join(others)} files need {MISSING}")
    names = tuple(sorted({*parts[0], *parts[1]}))

    def half(files: dict[str, list[Path]]) -> FolderSounds:
        pairs = [(path, names.index(name)) for name in names for path in files.get(name, [])]
        return FolderSounds([path for path, _ in pairs], [label for _, label in pairs], names, samples, rate)

    halves = (half(parts[0]), half(parts[1]))
    look_at(f"folder:{root}", halves)
    return halves


def look_at(name: str, halves: tuple[FolderSounds, FolderSounds]) -> None:
    """Reads some of the files, evenly spaced: warns of those that cannot be read, and refuses the folder where none can."""
    files = [(half, index) for half in halves for index in range(len(half))]
    failed = []
    chosen = torch.linspace(0, len(files) - 1, min(len(files), LOOKED_AT), dtype=torch.float64).long().tolist()
    for half, index in (files[at] for at in chosen):
        try:
            half.read(index)
        except MemoryError:
            raise
        except Exception as error:
            half.corrupt[index] = True
            failed.append((half.paths[index].name, sound_fault(error)))
    if len(failed) == len(chosen):
        said = f"{failed[0][0]}: {failed[0][1]}"
        raise UsageError(f"--data {name}: none of {len(chosen)} sound files looked at can be read: {said}")
    if failed:
        warn(unread_line(len(failed), len(chosen), "files looked at", failed[:3]))
