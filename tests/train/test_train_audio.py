"""COLA, MultiFormat, AudioMAE and CPC of waveforms in ``fastssl train``: training for real, resume, the picture, options."""

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, part_of_sounds, train_briefly
from tests.train.test_sounds import write_tone

NEW = ("cola", "multi_format", "audio_mae", "cpc_sound")

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

# method: epochs, every which clip, the task's score, its least value, the score of the features, its least gain over the untrained
# encoder's, on voices that were not heard; least values and gains are at most half of the least that five seeds gave
TRAINING = {
    "cola": (5, 2, "pairs", 0.07, "probe", 0.06),
    "multi_format": (4, 1, "pairs", 0.07, "knn", 0.09),
    "cpc_sound": (3, 2, "found", 0.002, "probe", 0.09),
}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_training_beats_the_untrained_encoder(name):
    if name == "audio_mae":  # on these words its features are no better than the untrained ones (docs/audio.md)
        found = train_briefly(name, epochs=5, share=1, test_share=1, part=part_of_sounds)
        assert found.after["error"] < 0.98 * found.after["fill"] < found.before["error"]
        return
    epochs, share, score, least, of_features, gain = TRAINING[name]
    full = of_features == "probe"
    found = train_briefly(name, epochs=epochs, share=share, test_share=1, part=part_of_sounds, full=full)
    assert found.after[score] > least > found.before[score]
    assert found.after[of_features] > found.before[of_features] + gain


OPTIONS = {
    "cola": ["--projection-dim", "8", "--segment", "0.5"],
    "multi_format": ["--projection-dim", "8"],
    "audio_mae": ["--decoder-dim", "8", "--decoder-depth", "1"],
    "cpc_sound": ["--projection-dim", "8"],
}


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    """On a folder of sound files."""
    for label, hertz in (("low", 300), ("high", 1500)):
        for i in range(15):
            write_tone(tmp_path / "sounds" / label / f"{i}.wav", hertz + 10 * i)
    where = ["--data", f"folder:{tmp_path / 'sounds'}", "--seconds", "0.4", "--batch-size", "8"]
    assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=(f"{name}, ", "kNN", "test sounds"))
    assert (tmp_path / "whole" / "spectrograms.png").exists() == (name == "audio_mae")


def test_segments_lie_anywhere_in_their_sound():
    from fastssl.train.sounds import random_segments

    sounds = torch.arange(40.0) + 100 * torch.arange(200.0)[:, None]
    segments = random_segments(sounds, 30)
    starts = segments[:, 0] - sounds[:, 0]
    assert torch.equal(segments, sounds[:, :1] + starts[:, None] + torch.arange(30.0)) and set(starts.tolist()) == set(range(11))
    assert torch.equal(random_segments(sounds, 40), sounds)


def test_the_shares_of_pairs_and_of_parts_that_are_found():
    """An encoder that keeps the sound finds every pair, one that forgets it none but by chance."""
    from types import SimpleNamespace

    from fastssl.train.recipes._sounds import SegmentSettings, found_pairs
    from fastssl.train.sounds import SoundData, TensorSounds

    half = TensorSounds(torch.rand(140, 1).expand(140, 20).contiguous(), torch.zeros(140, dtype=torch.int64), ("a",))
    data, how = SoundData("few", half, half, 1000, 20), {"device": "cpu", "workers": 0, "most": None}

    class Method(torch.nn.Module):
        def __init__(self, similarity):
            super().__init__()
            self.similarity = similarity

    right = Method(lambda a, b: -(a[:, :1] - b[:, 0]).abs())
    assert found_pairs(right, data, SegmentSettings(), **how) == {"pairs": 1.0}
    wrong = Method(lambda a, b: (a[:, :1] - b[:, 0]).abs())
    assert found_pairs(wrong, data, SegmentSettings(), **how) == {"pairs": 0.0}
    assert found_pairs(right, SimpleNamespace(test=range(1)), SegmentSettings(), **how) == {}


def test_the_errors_of_painted_spectrograms():
    """A method that paints the truth has none; one that paints the mean of the neighbours has that of the simplest guess."""
    from fastssl.methods import LogMel
    from fastssl.train.reconstruct import neighbour_fill
    from fastssl.train.sounds import SoundData, TensorSounds
    from fastssl.train.spectrograms import spectrogram_errors

    half = TensorSounds(torch.rand(6, 3200) - 0.5, torch.zeros(6, dtype=torch.int64), ("a",))
    data, how = SoundData("few", half, half, 8000, 3200), {"device": "cpu", "workers": 0, "most": None}

    class Painter(torch.nn.Module):
        patch_size, front_end = (8, 8), LogMel(rate=8000, mels=16)

        def __init__(self, guesses: bool):
            super().__init__()
            self.guesses = guesses

        def reconstruct(self, waveforms, *, generator):
            whole, mask = self.front_end(waveforms), (torch.rand(6, 10, generator=generator) < 0.5).float()
            return whole, neighbour_fill(whole, mask, (8, 8)) if self.guesses else whole, mask

    true, guess = (spectrogram_errors(Painter(guesses), data, **how) for guesses in (False, True))
    assert true["error"] == 0 and guess["error"] == guess["fill"] == true["fill"] > 0


def test_the_options_of_the_methods(capsys):
    from fastssl.__main__ import main

    for method, wanted in {
        "cola": ["--segment", "--projection-dim", "speech"],
        "multi_format": ["--segment", "--temperature"],
        "audio_mae": ["--mask-ratio", "--decoder-dim", "--seconds"],
        "cpc_sound": ["--temperature", "--rate"],
    }.items():
        with pytest.raises(SystemExit):
            main(["train", method, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert all(option in said for option in wanted) and "training sounds" in said
    for line, words in (
        ("cola --data photos", "unknown data set 'photos'; known: speech, folder:PATH"),
        ("cola --segment 0", "--segment"),
        ("audio_mae --seconds 0.75", "--seconds 0.75: must make a multiple of 8 columns of 0.01 s, makes 75"),
        ("audio_mae --mask-ratio 0.999", "--mask-ratio: AudioMAE: mask_ratio must remove some"),
        ("audio_mae --decoder-dim 10", "--decoder-dim"),
        ("cpc_sound --seconds 0.1", "--seconds"),
        ("cpc_sound --rate 16000", "--rate 16000: --data speech is made with 8000"),
    ):
        assert main(["train", *line.split()]) == 2 and words in capsys.readouterr().err, line
