"""Group keys: which images belong together by a column of a CSV file beside them, such as the patient, the volume or the region.

The file lies in the folder of ``--data folder:PATH``. One of its columns names the images, by their path below that folder or by
their name alone: the first of ``NAMES`` that there is, otherwise the first column. An image with an empty cell is a group of its
own.
"""

import csv
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from fastssl._options import closest
from fastssl.train import UsageError

NAMES = ("file", "filename", "file_name", "image", "path", "name")


def table_with(root: Path, column: str) -> tuple[Path, list[dict[str, str]], str]:
    """The one CSV file of ``root`` that has a column, its rows, and the column that names the images."""
    found: list[tuple[Path, list[dict[str, str]], str]] = []
    seen: dict[str, None] = {}
    for path in sorted(root.glob("*.csv")):
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"--group-key {column}: {path} cannot be read: {error}") from error
        columns = [name for name in (rows[0] if rows else {}) if name is not None]
        seen |= dict.fromkeys(columns)
        if column in columns:
            found.append((path, rows, next((name for name in NAMES if name in columns and name != column), columns[0])))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"--group-key {column}: {' and '.join(path.name for path, *_ in found)} both have such a column")
    there = f"their columns are {', '.join(seen)}{closest(column, seen)}" if seen else "there is no .csv file with rows"
    raise UsageError(f"--group-key {column}: no .csv file in {root} has such a column; {there}")


def group_codes(root: Path, paths: list[Path], column: str) -> Tensor:
    """The groups of images.

    Args:
        root: the folder with the CSV file, above the images.
        paths: N image files below it.
        column: of the CSV file, whose cells are the keys of the groups.

    Returns:
        (N,) int64, equal where the cells are equal, counted from 0.

    Raises:
        UsageError: no or more than one CSV file has the column, or no row is there for an image.
    """
    table, rows, names = table_with(root, column)
    cells = {Path(row[names]).as_posix(): (row[column] or "").strip() for row in rows if row[names]}
    often = Counter(path.name for path in paths)
    keys, missing = [], []
    for path in paths:
        whole = path.relative_to(root).as_posix()
        cell = cells.get(whole, cells.get(path.name) if often[path.name] == 1 else None)
        if cell is None:
            missing.append(whole)
        keys.append(("key", cell) if cell else ("image", whole))
    if missing:
        lost = f"{table.name} has no row for {len(missing)} of {len(paths)} training images, such as {missing[0]}"
        raise UsageError(f"--group-key {column}: {lost}; its column {names} names them by path or name")
    codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([codes[key] for key in keys], dtype=torch.int64)
