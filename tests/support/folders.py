"""Folders of images, written as a tree of names, and what is read from them."""

from pathlib import Path


def tree(root: Path, places: dict[str, int]) -> Path:
    """Empty files: ``count`` of them in a place that ends with /, else one of that name. Layouts are found by names alone."""
    for place, count in places.items():
        (root / place if place.endswith("/") else (root / place).parent).mkdir(parents=True, exist_ok=True)
        for name in [root / place / f"{i}.png" for i in range(count)] if place.endswith("/") else [root / place]:
            name.touch()
    return root


def counts(half: dict[str, list[Path]]) -> dict[str, int]:
    return {name: len(files) for name, files in half.items() if files}


AB = {"a": 4, "b": 5}


def check_layout(root: Path, places: dict, train: dict, test: dict, notes: list[str], warnings: list[str]) -> None:
    from fastssl.train.layout import find_images

    found = find_images(tree(root, places))
    assert counts(found.train) == train and counts(found.test) == test
    for words in notes:
        assert any(words in note for note in found.notes), found.notes
    assert len(found.warnings) == len(warnings), found.warnings
    for words, warning in zip(warnings, found.warnings, strict=True):
        assert words.replace("{}", str(root)) in warning
    trained, tested = (set().union(*half.values()) for half in (found.train, found.test))
    assert not trained & tested
