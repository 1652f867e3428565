"""Options of a command line: argparse that names a wrong one in one line, with the nearest right one. No abbreviations.

A command whose parser has ``--config`` takes options from a file too; those of the command line win.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ._config import Value, read_options
from ._ending import UsageError

MISSING = "the following arguments are required: "  # argparse's words
PRINTED = Path("-")  # the file that --json names where it names none
LARGEST = 2**63 - 1  # whole number that torch takes


def closest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing where no known word is near. Capitals, dashes and underscores make no difference."""

    def plain(text: str) -> str:
        return text.casefold().replace("-", "").replace("_", "") or text

    by_plain = {plain(each): each for each in reversed(list(known))}
    near = difflib.get_close_matches(plain(word), by_plain, 1, 0.6)
    return f"; did you mean {by_plain[near[0]]}?" if near else ""


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
        if message.startswith(MISSING):
            names = message.removeprefix(MISSING).split(", ")
            what = f"; {self.prog} --help lists " + ("the methods" if names == ["METHOD"] else "what the command takes")
            raise UsageError(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing{what}")
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

    def parse_args_and_file(self, args: Iterable[str] | None = None) -> argparse.Namespace:
        """Parses ``args``, by default those of this process, and the options of the file that ``--config`` names there."""
        words = list(sys.argv[1:] if args is None else args)
        return self.parse_args_after(*options_of_file(words), words)

    def parse_args_after(self, file: Path | None, entries: dict[str, Value], args: list[str]) -> argparse.Namespace:
        """Parses ``args``, and before them the options that ``file`` holds as ``entries``."""
        return self.parse_args([*(word for name, value in entries.items() for word in self.from_file(file, name, value)), *args])

    def from_file(self, file: Path | None, name: str, value: Value) -> list[str]:
        """The words of the command line that say what a file says by ``name: value``."""
        where, flag = f"--config {file}: ", "--" + name.replace("_", "-")
        actions = {word: action for action in self._actions for word in action.option_strings if word.startswith("--")}
        action = actions.get(flag)
        if action is None or flag in ("--config", "--help"):
            there = [word[2:].replace("-", "_") for word in actions if word not in ("--config", "--help")]
            why = self.instead.get(flag)
            raise UsageError(where + (f"{name}: {why}" if why else f"unknown option {name}{closest(name, there)}"))
        if value is None:
            return []
        if action.nargs == 0 or (action.nargs == "?" and isinstance(value, bool)):
            if not isinstance(value, bool):
                raise UsageError(f"{where}{name}: must be true or false, got {value!r}")
            off = flag.replace("--", "--no-", 1)
            end = [f"--config={file}"] if action.nargs == "?" else []  # what follows is no value of this option
            return [flag, *end] if value else [off] if off in action.option_strings else []
        several = action.nargs == "+"
        texts = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        texts = texts if several else [",".join(texts)]
        try:
            for text in texts:
                if callable(action.type):
                    action.type(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}{name}: {error}") from None
        return [flag, *texts, f"--config={file}"] if several else [f"{flag}={texts[0]}"]  # which ends the list

    def unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"one argument too many: '{word}'"
        if word in self.instead:
            return f"{word}: {self.instead[word]}"
        known = [name for action in self._actions for name in action.option_strings]
        return f"unknown option {word}" + (closest(word, known) or f"; {self.prog} --help lists them")


def add_config(group: argparse._ActionsContainer) -> None:
    """Adds ``--config``, whose file ``options_of_file`` reads."""
    what = "a YAML or JSON file with options by their names, such as epochs: 20; those of the command line win"
    group.add_argument("--config", type=path, metavar="FILE", help=what)


def add_json(parser: argparse._ActionsContainer, what: str) -> None:
    """Adds ``--json``, which is ``PRINTED`` where no file is named."""
    text = f"print {what} as JSON in place of a table; with FILE, print the table and write the JSON there"
    parser.add_argument("--json", nargs="?", const=PRINTED, type=path, metavar="FILE", help=text)


def options_of_file(args: list[str]) -> tuple[Path | None, dict[str, Value]]:
    """The file that ``--config`` names in a command line, and the options in it; None and {} without one."""
    parser = Parser("", add_help=False)
    add_config(parser)
    file = parser.parse_known_args(args)[0].config
    return file, {} if file is None else read_options(file)


def number(kind: type, low: float, *, above: bool = False, most: float | None = None) -> Callable[[str], Any]:
    """An argparse type: a finite number of at least ``low``, or above it, and at most ``most``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {'a whole' if kind is int else 'a'} number, got '{text}'") from None
        if not (value > low if above else value >= low) or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {low:g}, got {text}")
        limit = LARGEST if most is None and kind is int else most
        if limit is not None and value > limit:
            raise argparse.ArgumentTypeError(f"must be at most {limit}, got {text}")
        return value

    return parse


def directory(text: str) -> Path:
    """An argparse type: a path that is a directory or not there yet."""
    path = Path(text)
    if not text.strip() or (path.exists() and not path.is_dir()):
        what = "is a file, not a directory" if text.strip() else "must be a path"
        raise argparse.ArgumentTypeError(f"{what}, got '{text}'")
    return path


def path(text: str) -> Path:
    """An argparse type: a path, which is looked at later."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a path, got '{text}'")
    return Path(text)


def share(text: str) -> float:
    """An argparse type: a number above 0 and at most 1."""
    return number(float, 0.0, above=True, most=1)(text)


T = TypeVar("T", bound=Callable[[str], Any])


def takes(*names: str) -> Callable[[T], T]:
    """Notes on an argparse type which words it takes, for the completion of shells."""

    def note(parse: T) -> T:
        parse.names = names  # type: ignore[attr-defined]
        return parse

    return note


def one_of(*names: str) -> dict[str, Any]:
    """The arguments of ``add_argument`` for an option that is one of these names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got '{text}'{closest(text, names)}")
        return text

    return {"type": takes(*names)(parse), "metavar": "{" + ",".join(names) + "}"}
