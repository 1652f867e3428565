"""Data sets of sound: waveforms (B, S) float32 in [-1, 1] and int64 labels (B,), taken a batch at a time.

``speech``       20 words spoken by 42 made-up voices of a formant synthesiser (``speech.py``): no recordings. class = word; the
                 voices of the test clips are not among those of training
``folder:PATH``  sound files (``sound_files.py``); class = subfolder
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl._options import closest
from fastssl.train import UsageError
from fastssl.train.layout import shortened
from fastssl.train.samples import Samples
from fastssl.train.sound_files import FolderSounds, fitted, sound_folder
from fastssl.train.speech import RATE, SECONDS, WORDS, draw_speakers, speak

SPEECH_SEED = 0
SPEECH_TRAIN, SPEECH_TEST = 32, 10  # voices
TAKES = 2  # how often each voice speaks each word


def random_segments(waveforms: Tensor, samples: int) -> Tensor:
    """A segment of each of the waveforms (B, S), at a place that torch's generator draws -> (B, samples), samples at most S."""
    last = waveforms.shape[1] - samples
    start = torch.randint(0, last + 1, (len(waveforms), 1), device=waveforms.device)
    return waveforms.gather(1, start + torch.arange(samples, device=waveforms.device))


class SoundSamples(Samples):
    """Waveforms (B, S) float32 and their labels (B,) int64, of N sounds in all."""

    labels: Tensor  # (N,) int64
    class_names: tuple[str, ...]

    def corrupt_files(self) -> list[str]:
        """The files that could not be read so far."""
        return []


class TensorSounds(SoundSamples):
    """Sounds in memory: waveforms (N, S) float32, labels (N,) int64, class_names of the labels."""

    def __init__(self, waveforms: Tensor, labels: Tensor, class_names: tuple[str, ...]):
        self.waveforms, self.labels, self.class_names = waveforms, labels, class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        return self.waveforms[index], self.labels[index]


@dataclass(frozen=True)
class SoundData:
    """One data set of sounds: its two halves, the samples a second, and the samples S of each clip."""

    name: str
    train: SoundSamples | FolderSounds
    test: SoundSamples | FolderSounds
    rate: int
    samples: int
    notes: tuple[str, ...] = ()  # what was read, for the first line of a run

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def summary(self) -> str:
        clip = f"{self.samples / self.rate:g} s at {self.rate} samples a second"
        names = f"{len(self.class_names)} classes ({shortened(self.class_names)})" if len(self.class_names) > 1 else "no classes"
        return "; ".join([f"{len(self.train)} training and {len(self.test)} test sounds of {clip}, {names}", *self.notes])

    @property
    def labelled(self) -> bool:
        """Whether kNN and linear probe mean anything: two classes at least to learn from, and one of them to test on."""
        return len(self.train.labels.unique()) > 1 and bool(torch.isin(self.test.labels, self.train.labels).any())


@cache
def _spoken() -> tuple[TensorSounds, TensorSounds]:
    """The training and the test half of ``speech``, made once in a process."""
    rng = np.random.default_rng(SPEECH_SEED)
    halves = []
    for voices in (SPEECH_TRAIN, SPEECH_TEST):
        of_each = voices * TAKES
        words, who = [word for word in WORDS for _ in range(of_each)], np.tile(np.arange(voices), TAKES * len(WORDS))
        waveforms = torch.from_numpy(speak(words, draw_speakers(voices, rng), who, rng))
        halves.append(TensorSounds(waveforms, torch.arange(len(WORDS)).repeat_interleave(of_each), tuple(WORDS)))
    return halves[0], halves[1]


def speech(rate: int = RATE, seconds: float = SECONDS) -> SoundData:
    """20 words, each spoken twice by 32 voices for training and by 10 others for the test, the same ones every time."""
    if rate != RATE:
        raise UsageError(f"--rate {rate}: --data speech is made with {RATE} samples a second")
    samples = round(rate * seconds)
    train, test = (TensorSounds(fitted(half.waveforms, samples), half.labels, half.class_names) for half in _spoken())
    return SoundData("speech", train, test, rate, samples, ("synthesised",))


def load_sounds(spec: str, rate: int = RATE, seconds: float = SECONDS) -> SoundData:
    """The data set of sounds that ``--data`` names.

    Args:
        spec: "speech" or "folder:PATH".
        rate: samples a second.
        seconds: length of each clip: longer sounds are cut to their middle, shorter ones have silence around them.

    Returns:
        A ``SoundData``. Its halves ``train`` and ``test`` answer ``__getitems__(indices)`` with one batch: waveforms (B, S) float32
        in [-1, 1] and labels (B,) int64.

    Raises:
        UsageError: there is no such data set, no sound file in the folder that can be read, or a package is missing. Its text names
            the option of the command line.

    Examples:
        >>> data = load_sounds("speech")
        >>> len(data.train), len(data.test), data.train.__getitems__([0, 1])[0].shape
        (1280, 400, torch.Size([2, 6400]))
    """
    if spec == "speech":
        return speech(rate, seconds)
    if spec.startswith("folder:"):
        samples = round(rate * seconds)
        return SoundData(spec, *sound_folder(Path(spec.removeprefix("folder:")).expanduser(), rate, samples), rate, samples)
    hint = f"; did you mean folder:{spec}?" if Path(spec).is_dir() else closest(spec, ["speech"])
    raise UsageError(f"--data: unknown data set '{spec}'{hint or '; known: speech, folder:PATH'}")
