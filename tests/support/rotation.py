"""Tests that take minutes in all and of which a part runs each day; with FASTSSL_TEST_ALL=1 all of them do."""

import datetime
import os
from collections.abc import Iterable


def of_today(cases: Iterable, days: int) -> list:
    """Every ``days``-th of the cases, others on each of as many days that follow each other."""
    turn = datetime.date.today().toordinal() % days
    everything = os.environ.get("FASTSSL_TEST_ALL") == "1"
    return [case for number, case in enumerate(cases) if everything or number % days == turn]
