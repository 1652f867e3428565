"""The index of the examples lists every script, a test runs each of them, and they understand the commands that it prints."""

import runpy

import pytest

from tests.examples import test_examples, test_frameworks
from tests.support.example_index import indexed, scripts, understands

INDEXED = indexed()
FRAMEWORKS = {f"frameworks.{name}" for name in test_frameworks.NEEDS}


def test_every_script_is_listed_and_nothing_else():
    assert set(INDEXED) == scripts()
    assert len(INDEXED) > 25


def test_every_listed_script_is_run_by_a_test():
    tested = {
        line.split()[0] for line in (*test_examples.SCRIPTS, *test_examples.PAIRS, *test_examples.TOGETHER, *test_examples.TURNS)
    }
    assert set(INDEXED) - tested == FRAMEWORKS


@pytest.mark.parametrize("script", sorted(set(INDEXED) - FRAMEWORKS))
def test_a_script_understands_its_commands(script, capsys):
    """Those of ``frameworks`` import their libraries first, and are asked when they are run."""
    for options in INDEXED[script]:
        assert understands(lambda: runpy.run_module(f"examples.{script}", run_name="__main__"), options), (
            options,
            capsys.readouterr(),
        )


def test_a_wrong_option_is_not_understood(capsys):
    assert not understands(lambda: runpy.run_module("examples.moco.main_moco", run_name="__main__"), ["--queue", "many"])
    assert "--queue" in capsys.readouterr().err
