"""README, CONTRIBUTING and docs: their code runs as printed, the commands and files that they name exist, the README is short."""

import ast
import contextlib
import functools
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

import fastssl
from tests.support.page_needs import GPU, HOLDS, NEEDS

ROOT = Path(__file__).resolve().parents[2]
_DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md", "tests/without_gpu/README.md", *_DOCS]
_BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>[^>]*) -->\n)?^```python\n(?P<code>.*?)^```", re.M | re.S)
_SHELL = re.compile(r"^```(?:bash|sh|shell|console|text)?\n(.*?)^```", re.M | re.S)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def python_blocks(page: str) -> list[tuple[list[str], str]]:
    """(names after "needs:", code) of each Python block, behind as many empty lines as stand before it on the page."""
    text = text_of(page)
    found = []
    for block in _BLOCK.finditer(text):
        needs = [name.strip() for name in (block["needs"] or "").split(",") if name.strip()]
        found.append((needs, "\n" * text.count("\n", 0, block.start("code")) + block["code"]))
    assert len(found) == len(re.findall(r"^ *```python", text, re.M)), f"{page}: a Python block that this test does not see"
    return found


def imports_of(code: str) -> str:
    """Only the import statements of a block."""
    return "\n".join(ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)])
def test_the_code_of_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    """Blocks run one after another, with the variables of those before, in an empty folder. Of a block for a GPU only the imports
    run where there is none."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for needs, code in python_blocks(page):
        unknown = set(needs) - {GPU, *NEEDS}
        assert not unknown, f"{page} needs {unknown}, and tests/support/page_needs.py knows {[GPU, *NEEDS]}"
        for need in needs:
            names |= NEEDS[need](tmp_path) if need != GPU else {}
        on_gpu = GPU not in needs or torch.cuda.is_available()
        exec(compile(code if on_gpu else imports_of(code), page, "exec"), names)
    HOLDS.get(page, lambda names: None)(names)


def test_the_readme_is_short_and_trains_something():
    assert len(text_of("README.md").split()) <= 900
    assert any(".backward()" in code for _, code in python_blocks("README.md"))


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = text_of(page)
    named = re.findall(r"`((?:fastssl|csrc|benchmarks|tests|docs|requirements)/[\w./-]+\.\w+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^()\s]+)\)", text) if ":" not in link]
    assert [link for link in links if link and not ((ROOT / page).parent / link).exists()] == []


def commands_of(page: str) -> list[str]:
    """Commands in blocks that are no Python, and in code spans, without comments and continuation lines."""
    text = text_of(page)
    lines = [line for block in _SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    lines += re.findall(r"`([^`\n]+)`", text)
    commands = [re.split(r"\s+#\s|\s{3,}", line.strip().removeprefix("$ "))[0] for line in lines]
    return [command for command in commands if re.match(r"(fastssl|make|pip|torchrun|python3?|\S*/python|\S*/fastssl) \S", command)]


@functools.cache
def help_of(*words: str) -> str:
    """What ``fastssl ... --help`` prints; fails where there is no such command."""
    from fastssl.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([*words, "--help"])
        except SystemExit as end:
            code = end.code
    if "is not installed" in said.getvalue():
        pytest.skip(said.getvalue().strip())
    assert not code, said.getvalue()
    return said.getvalue()


@functools.cache
def source_of(module: str) -> str:
    """The source of a module, or of all modules of a package that can be run; fails where there is none."""
    place = ROOT.joinpath(*module.split("."))
    if place.with_suffix(".py").exists():
        return place.with_suffix(".py").read_text()
    assert (place / "__main__.py").exists(), f"python -m {module}: there is no such module"
    return "\n".join(file.read_text() for file in place.glob("*.py"))


def fault_of(command: str) -> str | None:
    """What is wrong with a command that a page prints; None if nothing is."""
    program, *words = shlex.split(command, comments=False)
    program = Path(program).name
    options = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
    if program == "make":
        makefile = text_of("Makefile")
        missing = [word for word in words if "=" not in word and not re.search(rf"^{re.escape(word)}:", makefile, re.M)]
        variables = [word.partition("=")[0] for word in words if "=" in word]
        missing += [name for name in variables if f"$({name})" not in makefile]
        return f"the Makefile has no {missing}" if missing else None
    if program == "fastssl":
        named = [word for word in words[:2] if re.fullmatch(r"[a-z_0-9]+", word)]
        known = help_of(*named[: 2 if named[:1] == ["train"] else 1])
        return next((f"there is no option {option}" for option in options if option not in known), None)
    module = words[words.index("-m") + 1] if "-m" in words[:3] else ""
    if module.split(".")[0] in ("fastssl", "benchmarks", "tests", "examples"):
        source = source_of(module)
        if module.startswith("examples."):  # whose own options are keywords of a call
            source += source_of("examples._compare") + "".join(f'"--{name}"' for name in re.findall(r"(\w+)=\(", source))
        options = [option for option in options if option != "--nproc-per-node"]  # of torchrun
        return next((f"{module} has no option {option}" for option in options if f'"{option}"' not in source), None)
    if program.startswith("python") and words[0].endswith(".py"):
        return None if (ROOT / words[0]).exists() else f"there is no {words[0]}"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_prints_exist(page):
    faults = {command: fault_of(command) for command in commands_of(page)}
    assert {command: fault for command, fault in faults.items() if fault} == {}


def test_a_wrong_command_is_found():
    assert fault_of("make test") is None and "frobnicate" in fault_of("make frobnicate")
    assert "--frobnicate" in fault_of("python -m tests.fuzz --frobnicate") and fault_of("python -m tests.fuzz --only nce") is None
    assert "--frobnicate" in fault_of("fastssl bench nt_xent --frobnicate")
    example = "torchrun --nproc-per-node 2 -m examples.torchrun.simclr"
    assert "--frobnicate" in fault_of(f"{example} --frobnicate") and fault_of(f"{example} --wrap fsdp2 --fastssl") is None


def test_the_citation_and_the_package_agree():
    """The keys that CFF 1.2.0 requires, the version, and the licence as an SPDX expression."""
    said = dict(re.findall(r'^([a-z-]+): ?"?([^"\n]*)"?$', text_of("CITATION.cff"), re.M))
    assert said["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(said)
    assert '- name: "fastssl authors"' in text_of("CITATION.cff")
    package = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert said["license"] == package["license"] == "MIT" and text_of("LICENSE").startswith("MIT License")
    assert said["version"] == fastssl.__version__


def test_the_list_of_commands_fits_a_terminal():
    from fastssl.__main__ import COMMANDS, USAGE

    lines = USAGE.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[:2] == "  " != line[2:4]] == list(COMMANDS)
