"""The examples in the docstrings of the training's public functions run and print what they say."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

from tests.methods.test_image import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api" / "train.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^::: (fastssl\.train\.\S+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_prints_what_it_says(name):
    module, _, function = name.rpartition(".")
    found = importlib.import_module(module)
    names = {"torch": torch} | vars(found)
    test = doctest.DocTestParser().get_doctest(getattr(found, function).__doc__, names, name, module, 0)
    assert test.examples, f"{name} has no example"
    out: list[str] = []
    torch.manual_seed(0)
    assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=out.append).failed, "".join(out)


def test_the_page_names_functions():
    assert len(NAMES) > 10
