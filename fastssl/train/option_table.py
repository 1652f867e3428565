"""The tables of options in ``docs/options.md``, made from the settings of the methods: ``python -m fastssl.train.option_table``.

Writes them between the two markers of the file that is named, by default ``docs/options.md``.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from fastssl.train import TrainConfig
from fastssl.train.recipes import RECIPES
from fastssl.train.settings import Setting, settings_of

START, END = "<!-- options:start, made by python -m fastssl.train.option_table -->", "<!-- options:end -->"


def table() -> str:
    """Both tables as Markdown: what all methods take, and what some do."""
    common, takers = settings_of(TrainConfig), takers_by_name()
    lines = ["Every method takes:", "", *_head(False)]
    lines += [_row(takers[name], common[name], with_methods=False) for name in common]
    lines += ["", "Some methods take:", "", *_head(True)]
    lines += [_row(found, next(iter(found.values())), with_methods=True) for name, found in takers.items() if name not in common]
    return "\n".join(lines)


def takers_by_name() -> dict[str, dict[str, Setting]]:
    """For each setting the methods that have it, with their own form of it."""
    found: dict[str, dict[str, Setting]] = {}
    for method, recipe in RECIPES.items():
        for name, setting in settings_of(recipe.settings).items():
            found.setdefault(name, {})[method] = setting
    return found


def _head(with_methods: bool) -> list[str]:
    columns = ["option", "meaning", "default", *(["methods"] if with_methods else [])]
    return [_line(columns), _line(["---"] * len(columns))]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(found: dict[str, Setting], usual: Setting, *, with_methods: bool) -> str:
    cells = [f"`{usual.flag}`", _by_method({method: _help(setting) for method, setting in found.items()})]
    cells.append(_by_method({method: _default(setting) for method, setting in found.items()}))
    return _line([*cells, *([_named(list(found))] if with_methods else [])])


def _help(setting: Setting) -> str:
    return setting.option.help.format(unit="samples", loss="the loss").replace("docs/methods.md", "[methods](methods.md)")


def _default(setting: Setting) -> str:
    return setting.shown_default.format(unit="samples", loss="")


def _by_method(texts: dict[str, str]) -> str:
    """The text of most methods, and behind it those of the others."""
    groups: dict[str, list[str]] = {}
    for method, text in texts.items():
        groups.setdefault(text, []).append(method)
    first, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    return "<br>".join([first[0], *(f"{', '.join(methods)}: {text}" for text, methods in others)])


def _named(methods: list[str]) -> str:
    """The methods, or those that are left out where these are fewer."""
    missing = [method for method in RECIPES if method not in methods]
    return f"all but {', '.join(missing)}" if len(missing) < len(methods) and missing else ", ".join(methods)


def written(text: str) -> str:
    """``text`` of a page with today's tables between its markers."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page needs the lines {START} and {END}")
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/options.md")
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
