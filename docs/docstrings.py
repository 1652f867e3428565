"""An extension of griffe, which reads the docstrings for mkdocstrings: ``a, b: text`` in ``Args:`` describes both arguments.

griffe knows one argument a line. Where one sentence describes several, the docstrings write their names side by side; each of
them gets the sentence on the site. An argument that the function does not have is still a warning, which fails the build.
"""

import re

from griffe import Extension, Object

ITEM = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*)$")


class SharedDescriptions(Extension):
    """Repeats the description for each name of an item."""

    def on_object(self, *, obj: Object, **_) -> None:
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = one_name_each(obj.docstring.value)


def one_name_each(docstring: str) -> str:
    """The docstring with an item for each argument in its section ``Args:``."""
    lines, out, inside = docstring.split("\n"), [], False
    at = 0
    while at < len(lines):
        line = lines[at]
        if line and not line.startswith(" "):
            inside = line == "Args:"
        item = ITEM.match(line) if inside else None
        at += 1
        if item is None:
            out.append(line)
            continue
        more = []
        while at < len(lines) and lines[at].startswith(item["indent"] + " "):
            more.append(lines[at])
            at += 1
        for name in item["names"].split(", "):
            out += [f"{item['indent']}{name}: {item['text']}", *more]
    return "\n".join(out)
