"""Options of a command line: argparse that names a wrong one in one line, with the nearest right one. No abbreviations."""

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from ._ending import UsageError


def closest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ``argparse.ArgumentParser`` whose errors are a ``UsageError`` of one line.

    ``instead`` maps an option that belongs elsewhere to what is said where it is given.
    """

    def __init__(self, prog: str, description: str | None = None, *, add_help: bool = True):
        super().__init__(prog, description=description, formatter_class=Help, allow_abbrev=False, add_help=add_help)
        self.instead: dict[str, str] = {}
        self.words: list[str] = []

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UsageError(message + self.value_like_an_option(message.partition(":")[0]))

    def value_like_an_option(self, flag: str) -> str:
        """A hint where the word after ``flag`` begins with a dash and is no option: of these argparse takes only plain numbers."""
        at = self.words.index(flag) + 1 if flag in self.words else len(self.words)
        value = self.words[at] if at < len(self.words) else ""
        known = {name for action in self._actions for name in action.option_strings} | set(self.instead)
        if not value.startswith("-") or value.partition("=")[0] in known or value.startswith("--"):
            return ""
        return f"; a value that begins with a dash is written {flag}={value}"

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        self.words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self.unknown(rest[0].split("=")[0]))
        return parsed

    def unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"one argument too many: '{word}'"
        if word in self.instead:
            return f"{word}: {self.instead[word]}"
        known = [name for action in self._actions for name in action.option_strings]
        return f"unknown option {word}{closest(word, known)}; {self.prog} --help lists them"


def number(kind: type, low: float, *, above: bool = False, most: float | None = None) -> Callable[[str], Any]:
    """An argparse type: a finite number of at least ``low``, or above it, and at most ``most``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {'a whole' if kind is int else 'a'} number, got '{text}'") from None
        if not (value > low if above else value >= low) or math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {low:g}, got {text}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {text}")
        return value

    return parse


def directory(text: str) -> Path:
    """An argparse type: a path that is a directory or not there yet."""
    path = Path(text)
    if not text.strip() or (path.exists() and not path.is_dir()):
        what = "is a file, not a directory" if text.strip() else "must be a path"
        raise argparse.ArgumentTypeError(f"{what}, got '{text}'")
    return path


def share(text: str) -> float:
    """An argparse type: a number above 0 and at most 1."""
    return number(float, 0.0, above=True, most=1)(text)


def one_of(*names: str) -> dict[str, Any]:
    """The arguments of ``add_argument`` for an option that is one of these names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got '{text}'{closest(text, names)}")
        return text

    return {"type": parse, "metavar": "{" + ",".join(names) + "}"}
