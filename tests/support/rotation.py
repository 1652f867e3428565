"""Tests that take minutes in all and of which a part runs each day; with FASTSSL_TEST_ALL=1 all of them do."""

import datetime
import os
import zlib
from collections.abc import Callable, Iterable

import pytest

_DAY = datetime.date.today().toordinal()
_EVERYTHING = os.environ.get("FASTSSL_TEST_ALL") == "1"


def of_today(cases: Iterable, days: int) -> list:
    """Every ``days``-th of the cases, others on each of as many days that follow each other."""
    return [case for number, case in enumerate(cases) if _EVERYTHING or number % days == _DAY % days]


def every(days: int) -> Callable[[Callable], Callable]:
    """Decorates a test that runs on one of so many days. Its name decides which, so that such tests do not fall on the same day."""

    def marked(test: Callable) -> Callable:
        today = _EVERYTHING or zlib.crc32(test.__name__.encode()) % days == _DAY % days
        return pytest.mark.skipif(not today, reason=f"runs on one of {days} days")(test)

    return marked
