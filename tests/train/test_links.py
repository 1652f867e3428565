"""Links in a folder of images, and names of classes that are no text or would break a line."""

import os

import pytest

from fastssl.train import warn
from fastssl.train.layout import find_images, shortened
from tests.support.folders import tree
from tests.support.training import needs_train

pytestmark = needs_train


def test_links_are_followed_and_loops_are_cut(tmp_path):
    away = tree(tmp_path / "away", {"x/": 3, "y/deep/": 4, "one.png": 1})
    root = tree(tmp_path / "root", {"cat/": 5, "dog/": 2})
    os.symlink(away / "x", root / "dog" / "x")
    os.symlink(away / "y", root / "bird")
    os.symlink(away / "one.png", root / "cat" / "linked.png")
    os.symlink(root / "dog", root / "dog" / "x-again")  # a loop by name
    os.symlink(root, away / "y" / "deep" / "up")  # and one through a linked folder
    os.symlink(root, root / "self")
    os.symlink(away / "x", root / "dog" / "twice")
    os.symlink(root / "nowhere.png", root / "dog" / "broken.png")
    found = find_images(root)
    both = {name: len(found.train[name]) + len(found.test[name]) for name in found.train}
    assert both == {"bird": 4, "cat": 6, "dog": 5}
    assert any("1 linked to nothing" in note for note in found.notes) and any(
        "no images in self" in line for line in found.warnings
    )


def test_files_of_two_classes_are_counted(tmp_path):
    """By their real paths: a folder that is linked into another class, a file that is, and a whole class under another name."""
    root = tree(tmp_path / "root", {"a/": 5, "b/": 6, "away/c/": 5})
    assert not find_images(root).warnings
    os.symlink("../b", root / "a" / "tob")
    (line,) = [line for line in find_images(root).warnings if "more than one" in line]
    assert line.startswith("6 files are read under more than one class") and line.endswith(": a/tob/0.png and b/0.png"), line
    (root / "a" / "tob").unlink()
    os.symlink(root / "b" / "3.png", root / "a" / "other.png")
    os.symlink(root / "b" / "3.png", root / "b" / "again.png")  # of the same class
    (line,) = [line for line in find_images(root).warnings if "more than one" in line]
    assert line.startswith("1 file is read under more than one class") and line.endswith(": a/other.png and b/3.png"), line
    (root / "a" / "other.png").unlink()
    assert not find_images(root).warnings
    os.symlink("away/c", root / "c")
    assert [line.split(" under")[0] for line in find_images(root).warnings if "more than one" in line] == ["5 files are read"]
    split = tree(tmp_path / "split", {"train/a/": 3, "train/b/": 3, "test/a/": 1})
    os.symlink("../train/a", split / "test" / "b")  # another class in the other half
    (line,) = find_images(split).warnings
    assert line.startswith("3 files are read under") and line.endswith(": train/a/0.png and test/b/0.png"), line


def test_names_that_are_no_text_can_be_printed(tmp_path):
    place = os.fsencode(tmp_path / "c") + b"\xff"
    try:
        os.mkdir(place)
    except OSError:
        pytest.skip("this file system takes no such name")
    (line,) = find_images(tree(tmp_path, {"a/": 5, "b/": 5})).warnings
    assert "no images in c\\udcff of" in line and line.encode()


def test_names_that_would_break_a_line_are_escaped(tmp_path, capsys):
    assert shortened(["a\nb", "Ä 空", "c\td\x1b[1m", "e\udcff"]) == r"a\nb, Ä 空, c\td\x1b[1m, e\udcff"
    warn("no images in x\r\ny")
    assert capsys.readouterr().err == "warning: no images in x\\r\\ny\n"
