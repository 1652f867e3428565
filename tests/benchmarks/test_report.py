"""The pages of numbers are made from the result files, and leave out what cannot be measured again."""

import json
import shutil

import pytest

from benchmarks.report import __main__ as command
from benchmarks.report import pages, plots
from benchmarks.report.tables import RESULTS

CPU = "cpu-avx512-2cores"


@pytest.fixture
def results(tmp_path):
    """A copy of the CPU's result files, without any that were measured from uncommitted changes."""
    folder = tmp_path / "results"
    (folder / CPU).mkdir(parents=True)
    for path in (RESULTS / CPU).glob("*.json"):
        shutil.copy(path, folder / CPU)
        change(folder, path.stem, lambda case: case.update(commit=case["commit"].removesuffix("-dirty")))
    return folder


def change(folder, name, how):
    """``how`` of each case of a result file."""
    path = folder / CPU / f"{name}.json"
    found = json.loads(path.read_text())
    for case in found["cases"]:
        how(case)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("path", (pages.README, pages.PAGE), ids=lambda path: path.name)
def test_a_page_has_the_numbers_of_the_result_files(path):
    """If this fails, run ``python -m benchmarks.report``."""
    assert pages.pages()[path] == path.read_text()


def test_cases_of_uncommitted_changes_are_left_out_and_named(results):
    assert "rows are missing" not in pages.page(results) and "| 4096 x 128 | float32 | 194 ms |" in pages.page(results)
    change(results, "nt_xent", lambda case: case.update(commit=case["commit"] + "-dirty"))
    text = pages.page(results)
    assert "| 4096 x 128 | float32 | 194 ms |" not in text and "#### NT-Xent" not in text
    assert text.count("These rows are missing, because") == 1 and "NT-Xent (SimCLR) at 4096 x 128;" in text
    with pytest.raises(ValueError, match=r"no CPU under .* has all rows of the README's table"):
        pages.readme_block(results)


def test_a_peer_that_is_thousands_of_times_slower_is_explained(results):
    slow = {"ms": 4400.0, "peak_mb": 2300.0, "times_ours": 2171.8}

    def slowed(case):
        for entry in case["entries"]:
            if entry["implementation"] == "pytorch_metric_learning" and "ms" in entry:
                entry.update(slow)

    change(results, "nt_xent", slowed)
    text = pages.page(results)
    assert "2171.8x" in text and "grow with the cube of the batch size: 4.4 s and 2.3 GB for 512 rows" in text


def test_numbers_follow_the_results_and_a_gpu_is_no_longer_denied(results):
    change(results, "moco_step", lambda case: case["entries"][0].update(ms=123.0, peak_mb=4.56))
    assert "| MoCo loss, queue | 123 ms |" in pages.readme_block(results) and "4.56 MB" in pages.readme_block(results)
    assert "No GPU has been measured" in pages.readme_block(results) and "No GPU has been measured" in pages.page(results)
    shutil.copytree(results / CPU, results / "nvidia-h100")
    assert "No GPU has been measured" not in pages.readme_block(results) + pages.page(results)
    assert pages.page(results).index("## nvidia-h100") < pages.page(results).index(f"## {CPU}")


def test_a_case_measured_without_memory_fills_no_row_of_the_readme(results):
    change(results, "nt_xent", lambda case: [entry.pop("peak_mb", None) for entry in case["entries"]])
    with pytest.raises(ValueError, match="has all rows of the README's table"):
        pages.readme_block(results)
    assert "#### NT-Xent" in pages.page(results)


def test_the_block_between_the_markers_is_replaced(tmp_path):
    text = f"before\n{pages.START}\nold\n{pages.END}\nafter\n"
    assert pages.with_block(text, "new", tmp_path) == f"before\n{pages.START}\nnew\n{pages.END}\nafter\n"
    with pytest.raises(ValueError, match="must hold <!-- bench:start -->"):
        pages.with_block("nothing", "new", tmp_path)


def test_the_command_checks_and_prints(results, capsys):
    assert command.main(["--check"]) == 0
    change(results, "nt_xent", lambda case: case["entries"][0].update(ms=1.0))
    assert command.main(["--check", "--results", str(results)]) == 1
    assert "README.md differs from the result files" in capsys.readouterr().out
    assert command.main(["--print"]) == 0
    assert "### NT-Xent (SimCLR), forward + backward, 4096 x 128" in capsys.readouterr().out


def test_pictures_show_who_ran_at_several_sizes_from_committed_code(results):
    cases = json.loads((results / CPU / "nt_xent.json").read_text())["cases"]
    shown = plots.series([case for case in cases if case["shape"][-1] == 128], "ms")
    assert "lightly" in shown and "pytorch_metric_learning" not in shown
