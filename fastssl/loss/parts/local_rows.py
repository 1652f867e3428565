"""The warning of a loss that contrasts only the rows of its own process, where several processes train together."""

import contextlib
import warnings
from collections.abc import Iterator

from fastssl.distributed import world_size


class LocalRowsWarning(UserWarning):
    """Several processes train together, and a loss contrasts only the rows of its own process.

    Each function says it once in each process. Where rows are joined beforehand, or local negatives are wanted, ignore it:

    Examples:
        >>> import warnings
        >>> warnings.simplefilter("ignore", LocalRowsWarning)
    """


_WARNED: set[str] = set()
_JOINED = False  # whether ``rows_of_all`` holds


@contextlib.contextmanager
def rows_of_all() -> Iterator[None]:
    """A context for code that has joined the rows of all processes itself: nothing warns that they are local."""
    global _JOINED
    before, _JOINED = _JOINED, True
    try:
        yield
    finally:
        _JOINED = before


def warn_local_rows(op: str, stacklevel: int = 4) -> None:
    """Warns, once for each function in each process, that its negatives are those of one process of several.

    ``stacklevel`` leads to the caller of ``op``, as in ``warnings.warn``.
    """
    world = world_size()
    if world == 1 or op in _WARNED or _JOINED:
        return
    _WARNED.add(op)
    warnings.warn(
        f"{op}: {world} processes train together, and this loss contrasts the rows of its own process only. For the rows of all, "
        f"pass group=torch.distributed.group.WORLD ('Several processes' in docs/losses.md, of a method in docs/methods.md). If "
        f"they are joined or meant to be local: "
        f"warnings.simplefilter('ignore', fastssl.LocalRowsWarning)",
        LocalRowsWarning,
        stacklevel=stacklevel,
    )


# What ``torch.compiler.assume_constant_result`` sets: a traced call warns once and leaves nothing in the graph. The function itself
# would import dynamo.
setattr(warn_local_rows, "_dynamo_marked_constant", True)  # noqa: B010
