"""Words spoken by a formant synthesiser: synthesised sound, no recording of a person.

Source and filter, as in Klatt 1980 (https://doi.org/10.1121/1.383940): a train of pulses at the pitch of the speaker, or noise,
goes through resonators in a row, one for each formant, whose frequencies F and bandwidths W move from phoneme to phoneme:

    y[n] = a x[n] + b y[n - 1] + c y[n - 2]
    c = -exp(-2 pi W / rate)        b = 2 exp(-pi W / rate) cos(2 pi F / rate)        a = 1 - b - c

The hiss of consonants goes through one resonator of its own. All clips are filtered side by side, sample after sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RATE = 8000  # samples a second
SECONDS = 0.8  # of a clip
FRAME = 40  # samples for which a resonator keeps its frequency
SMOOTH = 7  # frames over which one phoneme passes into the next
BANDWIDTHS = (70.0, 100.0, 140.0, 200.0)  # of the four formants, in Hz
FOURTH = 3500.0  # frequency of the fourth formant in Hz, which stays
REFERENCE_PITCH = 120.0  # Hz, of a speaker with a vocal tract of length 1

# The formants of vowels are the means of men in Peterson and Barney 1952; those of consonants are near to what textbooks give.
# phoneme: F1, F2, F3 in Hz, strength of voice, of breath through the formants, of hiss, frequency of the hiss in Hz, milliseconds
PHONEMES = {
    "iy": (270, 2290, 3010, 1.0, 0.0, 0.0, 3000, 120),
    "ih": (390, 1990, 2550, 1.0, 0.0, 0.0, 3000, 90),
    "eh": (530, 1840, 2480, 1.0, 0.0, 0.0, 3000, 110),
    "ah": (640, 1190, 2390, 1.0, 0.0, 0.0, 3000, 110),
    "aa": (730, 1090, 2440, 1.0, 0.0, 0.0, 3000, 130),
    "ao": (570, 840, 2410, 1.0, 0.0, 0.0, 3000, 130),
    "oh": (500, 900, 2380, 1.0, 0.0, 0.0, 3000, 90),
    "uh": (440, 1020, 2240, 1.0, 0.0, 0.0, 3000, 90),
    "uw": (300, 870, 2240, 1.0, 0.0, 0.0, 3000, 130),
    "w": (300, 640, 2200, 0.7, 0.0, 0.0, 3000, 70),
    "y": (270, 2150, 3000, 0.7, 0.0, 0.0, 3000, 60),
    "r": (340, 1100, 1450, 0.7, 0.0, 0.0, 3000, 70),
    "l": (340, 1050, 2800, 0.7, 0.0, 0.0, 3000, 70),
    "n": (300, 1400, 2500, 0.45, 0.0, 0.0, 3000, 80),
    "v": (300, 1100, 2100, 0.4, 0.0, 0.12, 2600, 60),
    "z": (300, 1400, 2500, 0.35, 0.0, 0.35, 3600, 90),
    "f": (340, 1100, 2100, 0.0, 0.0, 0.2, 2600, 100),
    "th": (320, 1300, 2500, 0.0, 0.0, 0.15, 2000, 90),
    "s": (320, 1400, 2500, 0.0, 0.0, 0.7, 3600, 110),
    "-": (350, 1400, 2500, 0.0, 0.0, 0.0, 3000, 55),  # closed lips or tongue
    "p": (300, 900, 2200, 0.0, 0.4, 0.5, 900, 25),
    "t": (350, 1700, 2600, 0.0, 0.4, 0.9, 3500, 25),
    "k": (350, 1900, 2500, 0.0, 0.5, 0.7, 1800, 30),
    "d": (300, 1700, 2600, 0.5, 0.1, 0.4, 3400, 25),
    "g": (300, 1800, 2400, 0.5, 0.1, 0.4, 1700, 25),
}
WORDS = {
    "zero": "z ih r oh uh",
    "one": "w ah n",
    "two": "- t uw",
    "three": "th r iy",
    "four": "f ao r",
    "five": "f aa ih v",
    "six": "s ih - k s",
    "seven": "s eh v ah n",
    "eight": "eh ih - t",
    "nine": "n aa ih n",
    "yes": "y eh s",
    "no": "n oh uh",
    "up": "ah - p",
    "down": "- d aa uh n",
    "left": "l eh f - t",
    "right": "r aa ih - t",
    "stop": "s - t aa - p",
    "go": "- g oh uh",
    "on": "aa n",
    "off": "ao f",
}


@dataclass(frozen=True)
class Speakers:
    """What makes K voices differ, an array (K,) for each trait."""

    pitch: np.ndarray  # Hz
    tract: np.ndarray  # the formants are divided by it: the length of the vocal tract
    tempo: np.ndarray
    breath: np.ndarray  # strength of breath beside the voice
    tilt: np.ndarray  # share of the last sample that the source keeps: more is a duller voice
    vowels: np.ndarray  # (K, phonemes, 3), by which each formant of each phoneme is multiplied


def draw_speakers(count: int, rng: np.random.Generator) -> Speakers:
    """``count`` speakers; high voices have short vocal tracts, more or less."""
    pitch = np.exp(rng.uniform(np.log(85.0), np.log(260.0), count))
    tract = (REFERENCE_PITCH / pitch) ** 0.25 * np.exp(0.04 * rng.standard_normal(count))
    traits = (rng.uniform(0.8, 1.2, count), rng.uniform(0.0, 0.3, count), rng.uniform(0.6, 0.9, count))
    return Speakers(pitch, tract, *traits, np.exp(0.04 * rng.standard_normal((count, len(PHONEMES), 3))))


def _tracks(word: str, speakers: Speakers, who: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 7): three formants in Hz, voice, breath, hiss, frequency of the hiss, of one clip."""
    names = WORDS[word].split()
    rows = np.array([PHONEMES[name] for name in names], dtype=np.float64)
    rows[:, :3] *= speakers.vowels[who, [list(PHONEMES).index(name) for name in names]] / speakers.tract[who]
    lengths = rows[:, 7] / 1000 / speakers.tempo[who] * np.exp(0.1 * rng.standard_normal(len(names)))
    lengths = np.maximum(1, np.round(lengths * RATE / FRAME)).astype(int)
    start = rng.integers(1, max(2, frames - lengths.sum() - 1))
    ends = np.minimum(start + np.cumsum(lengths), frames)
    track = np.zeros((frames, 7))
    which = np.minimum(np.searchsorted(ends, np.arange(frames), side="right"), len(names) - 1)
    track[:] = rows[which, :7]
    track[:start, 3:6] = track[ends[-1] :, 3:6] = 0.0
    wide, short = np.ones(SMOOTH) / SMOOTH, np.ones(3) / 3
    padded = np.pad(track, ((SMOOTH // 2, SMOOTH // 2), (0, 0)), mode="edge")
    track[:, :3] = np.stack([np.convolve(padded[:, i], wide, "valid") for i in range(3)], 1)
    track[:, 3:6] = np.stack([np.convolve(padded[:, i], short, "same")[SMOOTH // 2 : -(SMOOTH // 2)] for i in range(3, 6)], 1)
    return track


def _resonator(frequency: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b, c of the equation above; a resonator above half of the rate stays just below it."""
    radius = np.exp(-np.pi * width / RATE)
    b, c = 2 * radius * np.cos(2 * np.pi * np.minimum(frequency, 0.48 * RATE) / RATE), -(radius**2)
    return 1 - b - c, b, c


def _through(resonators: Sequence[tuple[np.ndarray, ...]], x: np.ndarray) -> np.ndarray:
    """x (S, N) through resonators in a row, each of (S / FRAME, N) coefficients."""
    for coefficients in resonators:
        a, b, c = (part.astype(np.float32) for part in coefficients)
        y = np.repeat(a, FRAME, 0) * x
        last, second = np.zeros((2, x.shape[1]), np.float32)
        for n, row in enumerate(y):
            row += b[n // FRAME] * last
            row += c[n // FRAME] * second
            last, second = row, last
        x = y
    return x


def _pulses(pitch: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Pulses (S, N) at a pitch of (S, N) Hz, made duller by a low pass of (N,) ``tilt``, less their step."""
    turns = np.cumsum(pitch / RATE, 0)
    x = np.diff(np.floor(turns), axis=0, prepend=0.0).astype(np.float32)
    tilt = tilt.astype(np.float32)
    last = np.zeros_like(x[0])
    for row in x:
        row += tilt * last
        last = row
    return x * np.sqrt(1 - tilt**2).astype(np.float32)


def speak(words: list[str], speakers: Speakers, who: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clips of words.

    Args:
        words: N of ``WORDS``.
        speakers: K voices.
        who: (N,) integers, which of them speaks each word.
        rng: what draws how each clip is spoken.

    Returns:
        (N, RATE * SECONDS) float32 in [-1, 1].

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> speak(["yes", "no"], draw_speakers(1, rng), np.array([0, 0]), rng).shape
        (2, 6400)
    """
    samples, count = round(RATE * SECONDS), len(words)
    frames = samples // FRAME
    tracks = np.stack([_tracks(word, speakers, k, frames, rng) for word, k in zip(words, who, strict=True)], 1)  # (frames, N, 7)
    fall = 1 - rng.uniform(0.0, 0.25, count) * np.linspace(0, 1, samples)[:, None]
    pitch = speakers.pitch[who] * np.exp(0.06 * rng.standard_normal(count)) * fall
    noise = rng.standard_normal((samples, count), np.float32)
    voice, breath, hiss = (np.repeat(tracks[:, :, i].astype(np.float32), FRAME, 0) for i in (3, 4, 5))
    source = (
        voice * _pulses(pitch, speakers.tilt[who])
        + (0.03 * speakers.breath[who].astype(np.float32) * voice + 0.03 * breath) * noise
    )
    formants = [_resonator(tracks[:, :, i], np.full((frames, count), BANDWIDTHS[i])) for i in range(3)]
    formants.append(_resonator(FOURTH / speakers.tract[who] * np.ones((frames, 1)), np.full((frames, count), BANDWIDTHS[3])))
    hissed = _through([_resonator(tracks[:, :, 6], np.full((frames, count), 900.0))], hiss * noise)
    sound = np.diff(_through(formants, source), axis=0, prepend=np.float32(0)) + 0.05 * hissed
    return _in_a_room(sound.T, rng)


def _in_a_room(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """sound (N, S) at a loudness of each clip's own, with noise 15 to 35 dB below the speech."""
    level = np.sqrt((sound**2).mean(1, keepdims=True))
    decibels = rng.uniform(15.0, 35.0, (len(sound), 1))
    sound = sound / level + 10 ** (-decibels / 20) * rng.standard_normal(sound.shape, np.float32)
    loudness = rng.uniform(0.3, 0.9, (len(sound), 1))
    return (loudness * sound / np.abs(sound).max(1, keepdims=True)).astype(np.float32)
