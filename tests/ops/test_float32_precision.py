"""Products of float32 on a GPU follow torch's settings, whichever interface they were set through."""

import pytest
import torch

from fastssl.kernels.tiles.config import float32_precision


def _old(value):
    torch.set_float32_matmul_precision(value)


def _allow(value):
    torch.backends.cuda.matmul.allow_tf32 = value


def _new(value):
    torch.backends.cuda.matmul.fp32_precision = value


def _of_all_backends(value):
    torch.backends.fp32_precision = value


@pytest.fixture(autouse=True)
def default():
    yield
    _of_all_backends("none")
    _old("highest")
    _new("none")


def test_nothing_is_rounded_unless_asked_for():
    assert float32_precision() == "ieee"


SETTINGS = [
    *((_old, value, value != "highest") for value in ("highest", "high", "medium")),
    *((setter, value, value == "tf32") for setter in (_new, _of_all_backends) for value in ("tf32", "ieee")),
    *((_allow, value, value) for value in (True, False)),
]


@pytest.mark.parametrize(("setter", "value", "rounds"), SETTINGS)
def test_every_interface(setter, value, rounds):
    setter(value)
    assert float32_precision() == ("tf32" if rounds else "ieee")


def test_the_last_word_counts():
    _new("tf32")
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()  # what the older getter does then
    assert float32_precision() == "tf32"
    _old("highest")
    assert float32_precision() == "ieee"
