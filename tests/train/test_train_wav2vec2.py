"""wav2vec 2.0 in ``fastssl train``: training for real on synthesised speech, and resume."""

import pytest

from tests.support.rotation import every, of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, part_of_sounds, train_briefly
from tests.train.test_sounds import write_tone

NEW = ("wav2vec2",)

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


@every(3)
@pytest.mark.parametrize("name", NEW)
def test_training_teaches_the_words_of_voices_that_were_never_heard(name):
    """Half of the clips. Chance is 0.01 of the frames. The margin of the probe is below half of the least gain of five seeds."""
    found = train_briefly(name, part=part_of_sounds, share=2, test_share=2, full=True, epochs=4)
    assert found.losses[-1] < 0.97 * found.losses[0]
    assert found.after["found"] > 0.015
    assert found.after["probe"] > found.before["probe"] + 0.1


@pytest.mark.parametrize("name", of_today(NEW, len(NEW)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    """Weights, codes and the step that the quantiser's temperature follows."""
    for label, hertz in (("low", 300), ("high", 1500)):
        for i in range(15):
            write_tone(tmp_path / "sounds" / label / f"{i}.wav", hertz + 10 * i)
    where = ["--data", f"folder:{tmp_path / 'sounds'}", "--seconds", "0.4", "--batch-size", "8"]
    state = assert_resumes_bit_for_bit([name, *where, "--entries", "4", "--span", "4"], tmp_path, capsys, said=("found", "kNN"))
    assert state["method.quantizer.step"] == 9
