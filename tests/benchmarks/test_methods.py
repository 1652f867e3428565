"""The result files of methods: one for each, and the table in docs/methods.md says what they say."""

import pytest

from tests.support.training import needs_train

pytestmark = needs_train


def test_every_method_has_a_run_of_less_than_four_minutes():
    from benchmarks.methods.runs import all_runs
    from fastssl.train.recipes import METHODS

    runs = all_runs()
    assert {options.split()[0] for options in runs} == set(METHODS)
    slow = {options: run["cpu_seconds"] for options, run in runs.items() if run["cpu_seconds"] >= 480}
    assert not slow  # seconds of one core; two are allowed
    assert all(run["seed"] == 0 and not run["commit"].endswith("-dirty") for run in runs.values())


def test_the_table_is_that_of_the_result_files():
    from benchmarks.methods import table

    page = table.PAGE.read_text(encoding="utf-8")
    assert table.written(page) == page, "python -m benchmarks.methods --table"


def test_a_row_is_filled_by_the_runs_of_its_class():
    from benchmarks.methods import table

    def run(seconds: float, **scores: float) -> dict:
        first = {"epoch": 0, **dict.fromkeys(scores, 0.25)}
        return {"cpu_seconds": seconds, "history": [first, {"epoch": 2, **scores}]}

    runs = {"simclr": run(90, knn=0.5, std=0.7), "moco": run(60, knn=0.25), "simclr --epochs 2": run(30, knn=0.375)}
    once = table.cells("SimCLR", {"simclr": runs["simclr"]})
    assert once == ("kNN 0.250 → 0.500", "1.5")
    assert table.cells("SimCLR", runs) == ("`simclr`: kNN 0.250 → 0.500<br>`simclr --epochs 2`: kNN 0.250 → 0.375", "1.5<br>0.5")
    assert table.cells("MoCo", runs) == ("kNN 0.250", "1.0")
    assert table.cells("NextSentence", {"bert": run(6, accuracy=0.5)}) == ("", "")


@pytest.mark.parametrize("options, name", [(["simclr"], "simclr.json"), (["bert", "--task", "nsp"], "bert-task-nsp.json")])
def test_a_result_file_has_the_name_of_its_run(options, name):
    from benchmarks.methods.runs import file_of

    assert file_of(options) == name
