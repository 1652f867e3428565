"""``fastssl completion bash | zsh | fish``: the script that makes a shell complete commands, methods, options and their words.

shtab makes the script from the parsers of all commands. Nothing of fastssl runs while a person types.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

from fastssl._options import Parser, directory, one_of, path

SHELLS = ("bash", "zsh", "fish")
PATHS = (path, directory)  # argparse types of files and folders


def parser() -> Parser:
    """The options of ``fastssl completion``."""
    what = "Print the script that makes a shell complete the commands of fastssl. docs/training.md says where it goes."
    found = Parser("fastssl completion", description=what)
    found.instead["--config"] = "completion has no options that a file could hold"
    found.add_argument("shell", type=one_of(*SHELLS)["type"], metavar="SHELL", help="bash, zsh or fish")
    return found


def _bench() -> Parser:
    """The parser of ``fastssl bench``, which knows no workloads where this is no source checkout."""
    from fastssl import bench

    try:
        return bench.parser()
    except ImportError:
        return bench._parser((), ())


def parsers() -> dict[str, Callable[[], argparse.ArgumentParser]]:
    """What makes the parser of each command; that of ``train`` is one for each method."""
    from fastssl import info
    from fastssl.train import options

    return {
        "eval": options.eval_parser,
        "export": options.export_parser,
        "report": options.report_parser,
        "compare": options.compare_parser,
        "runs": options.runs_parser,
        "info": info.parser,
        "bench": _bench,
        "completion": parser,
    }


def completed(action: argparse.Action) -> argparse.Action:
    """A copy of an option or argument that tells shtab which words it takes, or that it takes a path."""
    found: Any = copy.copy(action)
    if (names := getattr(action.type, "names", None)) is not None:
        found.choices = names
    elif action.type in PATHS:
        import shtab

        found.complete = shtab.FILE
    return found


def tree() -> argparse.ArgumentParser:
    """All commands as subcommands of one parser, and all methods as subcommands of ``train``."""
    from fastssl.train.options import train_parser
    from fastssl.train.recipes import RECIPES

    root = argparse.ArgumentParser("fastssl", description="fused kernels for self-supervised learning")
    commands = root.add_subparsers()
    methods = commands.add_parser("train", help="train an encoder").add_subparsers()

    def add(places: Any, name: str, original: argparse.ArgumentParser, what: str) -> None:
        copied = places.add_parser(name, help=what, add_help=False)
        for action in original._actions:
            if action.dest != "method":
                copied._add_action(completed(action))

    for method, recipe in RECIPES.items():
        add(methods, method, train_parser(method), f"{recipe.loss}, on {recipe.unit}")
    for name, make in parsers().items():
        original = make()
        add(commands, name, original, (original.description or "").partition(". ")[0])
    return root


def main(argv: list[str] | None = None) -> int:
    """Prints the script."""
    shell = parser().parse_args(argv).shell
    import shtab

    print(shtab.complete(tree(), shell))
    return 0
