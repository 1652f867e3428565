"""Sounds: the synthesised words, and folders of sound files."""

import builtins
import sys
import wave

import numpy as np
import pytest
import torch

from fastssl.train import UsageError
from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def peaks(waveform, rate: int, low: float, high: float) -> float:
    """The frequency in Hz of the strongest part of a sound between ``low`` and ``high``, of its smoothed spectrum."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    smooth = np.convolve(power, np.hanning(121), "same")
    hertz = np.fft.rfftfreq(len(waveform), 1 / rate)
    inside = (hertz >= low) & (hertz <= high)
    return float(hertz[inside][smooth[inside].argmax()])


def test_a_resonator_is_the_recursion_that_it_states():
    from fastssl.train.speech import FRAME, _resonator, _through

    rng = np.random.default_rng(0)
    x, frequency = rng.standard_normal((3 * FRAME, 2)), np.array([[500.0, 900.0], [700.0, 800.0], [1500.0, 300.0]])
    a, b, c = _resonator(frequency, np.full((3, 2), 90.0))
    y = np.zeros((3 * FRAME + 2, 2))
    for n in range(3 * FRAME):
        y[n + 2] = a[n // FRAME] * x[n] + b[n // FRAME] * y[n + 1] + c[n // FRAME] * y[n]
    np.testing.assert_allclose(_through([(a, b, c)], x.astype(np.float32)), y[2:], rtol=1e-4, atol=1e-4)
    low, width = np.exp(-1j * 2 * np.pi * frequency / 8000), 2.0  # the gain is largest at F, and 1 at 0 Hz
    gain = np.abs(a / (1 - b * low - c * low**2))
    assert (gain > width).all()


def test_formants_of_a_vowel_lie_where_the_table_says_and_move_with_the_vocal_tract():
    from fastssl.train import speech

    rng = np.random.default_rng(0)
    still = np.ones((1, len(speech.PHONEMES), 3))
    first = {}
    for tract in (1.0, 0.8):
        ones = np.ones(1)
        voice = speech.Speakers(100 * ones, tract * ones, ones, 0 * ones, 0.7 * ones, still)
        clips = speech.speak(["four"] * 8, voice, np.zeros(8, int), rng)
        first[tract] = np.mean([peaks(clip, speech.RATE, 300, 1300) for clip in clips])
    assert 450 < first[1.0] < 900 and 1.1 < first[0.8] / first[1.0] < 1.4


def test_speech_is_the_same_every_time_and_its_test_voices_are_others():
    from fastssl.train.sounds import SPEECH_TEST, SPEECH_TRAIN, TAKES, _spoken, load_sounds
    from fastssl.train.speech import SECONDS, WORDS

    data = load_sounds("speech")
    waveforms, labels = data.train.__getitems__([0, 700])
    assert waveforms.shape == (2, round(8000 * SECONDS)) and waveforms.dtype == torch.float32 and labels.dtype == torch.int64
    assert (len(data.train), len(data.test)) == tuple(len(WORDS) * TAKES * voices for voices in (SPEECH_TRAIN, SPEECH_TEST))
    assert data.class_names == tuple(WORDS) and data.labelled and "synthesised" in data.summary()
    for half in (data.train, data.test):
        assert half.labels.bincount().unique().numel() == 1 and half.waveforms.abs().max() <= 1
    _spoken.cache_clear()
    assert torch.equal(load_sounds("speech").test.waveforms, data.test.waveforms)
    cut = load_sounds("speech", seconds=0.5)
    assert torch.equal(cut.train.waveforms, data.train.waveforms[:, 1200:5200]) and cut.samples == 4000


def write_tone(path, hertz: float, *, rate: int = 8000, width: int = 2, channels: int = 1, seconds: float = 0.5) -> np.ndarray:
    """A WAV file of whole numbers with a tone -> its samples in [-1, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    top = 2 ** (8 * width - 1)
    whole = np.round(tone * (top - 1)).astype(np.int64)
    stored = ((whole + 128) if width == 1 else whole).astype("<i8")[:, None].repeat(channels, 1)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(stored.reshape(-1, 1).view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
    return tone


@pytest.mark.parametrize("width, channels", [(1, 1), (2, 2), (3, 1), (4, 1)])
def test_wav_files_of_whole_numbers_need_no_package(width, channels, tmp_path, monkeypatch):
    from fastssl.train.sound_files import read_sound

    tone = write_tone(tmp_path / "tone.wav", 440, width=width, channels=channels)
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: real(name if name != "soundfile" else "no soundfile", *rest))
    np.testing.assert_allclose(read_sound(tmp_path / "tone.wav", 8000), tone, atol=2.0 ** (1 - 8 * width) * 1.5 + 1e-6)


def test_sounds_are_resampled_and_cut_or_filled_to_one_length(tmp_path):
    from fastssl.train.sound_files import fitted, read_sound

    write_tone(tmp_path / "tone.wav", 440, rate=44100)
    sound = read_sound(tmp_path / "tone.wav", 8000)
    assert sound.shape == (4000,) and abs(peaks(sound.numpy(), 8000, 100, 3900) - 440) < 5
    assert fitted(torch.arange(1.0, 6.0), 8).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert fitted(torch.arange(8.0), 4).tolist() == [2, 3, 4, 5]


def test_a_folder_of_sounds(tmp_path, capsys):
    """Class subfolders; every fifth file is a test file; what cannot be read is left out and named."""
    from fastssl.train.data import reading_warnings
    from fastssl.train.sounds import load_sounds

    for name, hertz in (("low", 300), ("high", 2000)):
        for i in range(10):
            write_tone(tmp_path / name / f"{i}.wav", hertz + 10 * i)
    (tmp_path / "low" / "3.wav").write_bytes(b"RIFF....WAVE")
    (tmp_path / "low" / "notes.txt").write_text("no sound")
    data = load_sounds(f"folder:{tmp_path}", 8000, 0.25)
    assert "1 of 20 files looked at cannot be used" in capsys.readouterr().err
    assert (len(data.train), len(data.test), data.class_names, data.labelled) == (16, 4, ("high", "low"), True)
    waveforms, labels = data.train.__getitems__(list(range(16)))
    assert waveforms.shape == (15, 2000) and labels.tolist() == [0] * 8 + [1] * 7
    assert [line for line in reading_warnings(data) if "3.wav" in line]
    for i in range(10):
        write_tone(tmp_path / "split" / ("train" if i < 6 else "Test") / "a" / f"{i}.wav", 300)
    data = load_sounds(f"folder:{tmp_path / 'split'}", 8000, 0.25)
    assert (len(data.train), len(data.test), data.class_names) == (6, 4, ("a",)) and not data.labelled


def test_a_run_of_sound_files_retrieves_no_images(tmp_path):
    from fastssl.train.downstream import TrainedRun
    from fastssl.train.recipes import RECIPES
    from fastssl.train.sounds import load_sounds

    for i in range(10):
        write_tone(tmp_path / "ab"[i % 2] / f"{i}.wav", 300)
    data = load_sounds(f"folder:{tmp_path}", 8000, 0.25)
    run = TrainedRun(tmp_path / "last.ckpt", {}, RECIPES["cola"].settings(), data, torch.device("cpu"), 0)
    assert len(run.labelled.train) == 8
    with pytest.raises(UsageError, match="is one of cola, which learns from sounds; fine-tuning and retrieval need images"):
        _ = run.images


def test_hidden_spans_that_are_longer_than_the_sounds_are_refused():
    from fastssl.train.recipes import RECIPES
    from fastssl.train.sounds import load_sounds

    recipe = RECIPES["wav2vec2"]
    with pytest.raises(UsageError, match=r"--span 41: --seconds 0\.4 holds only 40 frames of 80 samples"):
        recipe.build(recipe.settings(seconds=0.4, span=41), load_sounds("speech", 8000, 0.4))


def test_what_is_no_data_is_refused_in_words(tmp_path, monkeypatch):
    from fastssl.train.sounds import load_sounds

    for spec, words in (
        ("speach", "did you mean.*speech"),
        (str(tmp_path), "did you mean folder:"),
        (f"folder:{tmp_path}/none", "there is no such folder"),
        (f"folder:{tmp_path}", "no sound files in it"),
    ):
        with pytest.raises(UsageError, match=words):
            load_sounds(spec)
    with pytest.raises(UsageError, match="--rate 16000: --data speech is made with 8000"):
        load_sounds("speech", 16000)
    (tmp_path / "a.flac").write_bytes(b"no flac")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "soundfile", None)
        with pytest.raises(UsageError, match=r'.flac files need soundfile .*"fastssl\[audio\]"'):
            load_sounds(f"folder:{tmp_path}")
    pytest.importorskip("soundfile")
    with pytest.raises(UsageError, match=r"none of 1 sound files looked at can be read: a\.flac"):
        load_sounds(f"folder:{tmp_path}")


def test_other_formats_are_read_by_soundfile(tmp_path):
    from fastssl.train.sound_files import read_sound

    soundfile = pytest.importorskip("soundfile")
    tone = (0.5 * np.sin(np.arange(4000) / 10)).astype(np.float32)
    for name, how in (("tone.flac", {}), ("float.wav", {"subtype": "FLOAT"})):
        soundfile.write(tmp_path / name, tone, 8000, **how)
        np.testing.assert_allclose(read_sound(tmp_path / name, 8000), tone, atol=1e-4)
