"""The index of the examples, ``examples/README.md``: the scripts and options that it names, and whether a script knows them."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
_COMMAND = re.compile(r"(?:python|torchrun) [^`\n#]*-m examples\.[^`\n#]+")


def indexed() -> dict[str, list[list[str]]]:
    """script, such as "lightly.simclr" -> the options of each command that the index prints, and of each that a row adds to it."""
    found: dict[str, list[list[str]]] = {}
    for line in (ROOT / "examples" / "README.md").read_text().splitlines():
        for command in _COMMAND.findall(line):
            words = shlex.split(command)
            at = words.index("-m") + 1
            script, options = words[at].removeprefix("examples."), words[at + 1 :]
            added = [shlex.split(each) for each in re.findall(r"`(--\w[^`]*)`", line)]
            found.setdefault(script, []).extend([options, *([*options, *each] for each in added)])
    return found


def scripts() -> set[str]:
    """The scripts that are there: the modules of ``examples`` that have options."""
    files = [
        path
        for path in (ROOT / "examples").glob("*/*.py")
        if re.search(r"\barguments\(\s*__doc__|ArgumentParser\(", path.read_text())
    ]
    return {f"{path.parent.name}.{path.stem}" for path in files}


class Parsed(Exception):
    """The options were understood."""


def understands(call: Callable[[], object], words: list[str]) -> bool:
    """Whether ``call``, which parses the arguments of the process or its own, understands ``words``. It ends behind its parser."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser: argparse.ArgumentParser, args: list[str] | None = None) -> argparse.Namespace:
        parse(parser, words)
        raise Parsed

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_end),
        mock.patch.object(sys, "argv", ["example", *words]),
    ):
        try:
            call()
        except Parsed:
            return True
        except SystemExit:
            return False
    raise AssertionError("nothing was parsed")
