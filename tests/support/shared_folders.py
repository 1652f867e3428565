"""What a fixture of a module or of the whole session leaves on the disk stays as it is: a test that writes into it fails itself,
and none that comes later fails in its place. ``tests/conftest.py`` registers this plugin of pytest."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

#: By the fixture's name: its paths, and what was there when it was made, or after the last test that was told of a change.
_LEFT: dict[str, tuple[list[Path], dict]] = {}


def paths_in(value: object) -> list[Path]:
    """The paths that a fixture gives: itself, or those of a tuple, a list or a dict."""
    if isinstance(value, Path):
        return [value]
    parts: Iterable = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [part for part in parts if isinstance(part, Path)]


def state_of(paths: list[Path]) -> dict[Path, tuple[int, int] | None]:
    """The size and the time of the last change of every file, and None for a folder."""
    every = [path for top in paths for path in (top, *top.rglob("*")) if path.exists()]
    return {path: None if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns) for path in every}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> Iterator[None]:
    value = yield
    if fixturedef.scope != "function" and (paths := paths_in(value)):
        _LEFT[fixturedef.argname] = paths, state_of(paths)
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    result = yield
    for name in _LEFT.keys() & set(getattr(item, "fixturenames", ())):
        paths, before = _LEFT[name]
        after = state_of(paths)
        _LEFT[name] = paths, after
        changed = sorted(str(path) for path in before.keys() | after.keys() if before.get(path, 0) != after.get(path, 0))
        if changed:
            pytest.fail(
                f"the fixture {name} is shared by several tests; this one, which needs a copy, changed {', '.join(changed)}"
            )
    return result
