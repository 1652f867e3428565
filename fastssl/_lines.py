"""Lines that fit the terminal: broken between words, or cells of a table shortened. What is no terminal gets them as they are."""

import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

SHORTEST = 10  # characters of a cell that is shortened


def columns_of(stream: Any) -> int | None:
    """How wide the terminal is that ``stream`` writes to; None where it writes to none."""
    return shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None


def broken(line: str, width: int, indent: int | None = None) -> str:
    """``line`` on as many lines of ``width`` characters as it takes; those after the first begin with ``indent`` spaces.

    By default they begin two spaces further to the right than the line does. A longer word, such as a path, stays whole.

    Examples:
        >>> print(broken("  probe  0.5 0.25", 12, 9))
          probe  0.5
                 0.25
    """
    if len(line) <= width:
        return line
    start = re.match(" *", line)
    further = (len(start[0]) if start else 0) + 2 if indent is None else indent
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * further, **how)) or line


def fitting(rows: Sequence[tuple[str, ...]], flexible: Collection[int], width: int | None, spare: Sequence[int] = ()) -> list[str]:
    """The lines of a table, as wide as its cells are, or at most ``width`` as far as its columns allow.

    Args:
        rows: the cells.
        flexible: columns that are shortened where a line is too wide.
        width: of the terminal; None where there is none.
        spare: columns that are left out where that is not enough, the first ones first.
    """
    for left in range(len(spare) + 1):
        kept = [i for i in range(len(rows[0])) if i not in spare[:left]]
        lines = shortened_lines([tuple(row[i] for i in kept) for row in rows], [kept.index(i) for i in flexible], width)
        if width is None or max(map(len, lines)) <= width:
            break
    return lines


def shortened_lines(rows: Sequence[tuple[str, ...]], flexible: Collection[int], width: int | None) -> list[str]:
    """The lines of a table whose ``flexible`` columns are shortened where a line is wider than ``width``."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for column in flexible:
        over = sum(widths) + 2 * (len(widths) - 1) - (width or sys.maxsize)
        if over > 0:
            widths[column] = max(min(SHORTEST, widths[column]), widths[column] - over)
    return ["  ".join(shortened(cell, w).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def shortened(text: str, width: int) -> str:
    """``text``, or its beginning and its end with a mark between them."""
    if len(text) <= width:
        return text
    end = (width - 1) * 2 // 3
    return f"{text[: width - 1 - end]}~{text[len(text) - end :]}"
