"""A test that writes into what a fixture shares fails, and the next one does not."""

import pytest

from tests.support import shared_folders

TESTS = """
import shutil
import pytest

def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    (folder / "a.txt").write_text("a")
    return folder

@pytest.fixture(scope="module")
def of_module(tmp_path_factory):
    yield made(tmp_path_factory)

@pytest.fixture(scope="session")
def of_session(tmp_path_factory):
    return 1, made(tmp_path_factory)

@pytest.fixture
def own(tmp_path_factory):
    return made(tmp_path_factory)

def read(folder):
    assert (folder / "a.txt").read_text() == "a"

def add(folder):
    (folder / "b.txt").touch()

def enter(folder):
    (folder / "c").mkdir()

def alter(folder):
    (folder / "a.txt").write_text("b")

def remove(folder):
    shutil.rmtree(folder)

@pytest.mark.parametrize("what", [read, add, enter, alter, id, remove])
def test_module(what, of_module):
    what(of_module)

@pytest.mark.parametrize("what", [read, add, id, remove])
def test_session(what, of_session):
    what(of_session[1])

@pytest.mark.parametrize("what", [add, enter, alter, remove])
def test_own(what, own):
    what(own)
"""


def test_the_writer_fails_and_no_other(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_these.py").write_text(TESTS)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    where = ["--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "temp"), str(tmp_path)]
    pytest.main(
        ["-q", "-rA", "-c", "/dev/null", "-p", "no:cacheprovider", "--import-mode=importlib", *where], plugins=[shared_folders]
    )
    said = capsys.readouterr().out
    failed = {line.split("::")[1].split()[0] for line in said.splitlines() if line.startswith("FAILED")}
    assert failed == {f"test_module[{what}]" for what in ("add", "enter", "alter", "remove")} | {
        f"test_session[{what}]" for what in ("add", "remove")
    }, said
    assert said.count("which needs a copy, changed") >= 6 and "8 passed" in said
