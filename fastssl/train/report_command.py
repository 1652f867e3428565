"""``fastssl report RUN [RUN ...]``: the page of each run made anew, and of several runs a page that compares them."""

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastssl._ending import PLACE, visible
from fastssl.train.checkpoints import own_checkpoint
from fastssl.train.compare import (
    COLUMNS,
    Kind,
    Row,
    by_kind,
    cells_of,
    draw_compare,
    heading_of,
    readable_runs,
    refuse_place,
    row_of,
)
from fastssl.train.options import report_parser
from fastssl.train.progress import say
from fastssl.train.report import Picture, picture_of, rendered, write_page, write_report

COMPARISON = Path("compare.html")
ABOUT = (
    "The score of each run against epochs and against the time of training; of many runs each has a place, with a hollow dot for "
    "the untrained encoder and a full one for the last score."
)


def report(argv: list[str]) -> int:
    """Writes the pages and prints their paths."""
    given = report_parser().parse_args_and_file(argv)
    PLACE.debug = given.debug
    if given.out is not None:
        refuse_place("--out", given.out)
    runs = list(readable_runs(given.runs))
    alone = len(runs) == 1
    pages = {}
    for run, path, checkpoint in runs:
        own = own_checkpoint(run, path, checkpoint)[0] == path
        pages[run] = write_report(path, checkpoint, given.out if alone else None, own=own)
    for page in pages.values():
        say(visible(f"  report      {page}"))
    if not alone:
        kinds = by_kind(row_of(run, checkpoint) for run, _, checkpoint in runs)
        out = given.out or COMPARISON
        write_page(out, comparison_of(kinds, {str(run): page for run, page in pages.items()}, out))
        say(visible(f"  comparison  {out}"))
    return 0


def comparison_of(kinds: dict[Kind, list[Row]], pages: dict[str, Path], out: Path) -> str:
    """The page that compares runs, as text.

    Args:
        kinds: the runs, by what can be compared.
        pages: a run's path -> its own page.
        out: where the page will be, for its links.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "compare.png")
        draw_compare(kinds, path)
        picture: Picture | None = picture_of(path, "Scores against epochs and time", ABOUT)
    return rendered(
        "compare.html.jinja", title="Comparison of runs", columns=COLUMNS, kinds=tables_of(kinds, pages, out), picture=picture
    )


def tables_of(kinds: dict[Kind, list[Row]], pages: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    """For each kind its heading, and for each of its rows the link to the run's own page and the cells."""

    def link(run: str) -> str:
        return quote(os.fsencode(Path(os.path.relpath(pages[run], out.parent)).as_posix()))

    return [
        {
            "heading": heading_of(kind, rows),
            "rows": [(link(row.run), cells_of(row)) for row in rows],
        }
        for kind, rows in kinds.items()
    ]
