"""The archive of a checkpoint, looked at before torch reads it: that it is whole, and that it asks for no more than it holds.

torch reads such an archive with ``weights_only=True``, which runs no code. But it believes the archive's own numbers: a storage
that claims more bytes than its entry has would be read beyond its end, and a few bytes can ask for terabytes. So nothing is given
to torch until the numbers are those of the file. Nothing is unpickled here, either: the instructions of the pickle are listed, not
followed. ``contents.py`` looks at what torch then gives.
"""

import pickletools
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
WIDTHS = {"Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "Long": 8, "Double": 8}
STORAGES = {f"torch {kind}Storage": width for kind, width in WIDTHS.items()}  # bytes of an element
TEXT, NAME, COUNT = ("BINUNICODE",), ("GLOBAL",), ("BININT", "BININT1", "BININT2", "LONG1")
NAMES_STORAGE = (("MARK",), TEXT, NAME, TEXT, TEXT, COUNT, ("TUPLE",))  # "storage", type, key, device, number of elements
END, END_BYTES = b"PK\x05\x06", 22  # of an archive without a comment


class MoreThanTensors(Exception):
    """The pickle of an archive names something that no tensor needs. The text is that name."""


def damage(path: Path, *, checksums: bool = True) -> str | None:
    """What is wrong with an archive by its own headers and checksums; None where torch can be given it.

    Args:
        path: a file that begins as a zip archive does.
        checksums: whether all of the file is read and compared with its checksums.

    Raises:
        MoreThanTensors: it names a class or a function that is not needed for tensors.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if why := wrong_headers(archive, path.stat().st_size):
                return why
            if checksums and (wrong := archive.testzip()):
                return f"the checksum of {wrong} is wrong"
            return wrong_pickle(archive)
    except MoreThanTensors:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        return first_line(error)
    except Exception as error:  # zipfile and pickletools raise a dozen types by what is wrong
        return first_line(error)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def wrong_headers(archive: zipfile.ZipFile, size: int) -> str | None:
    """What an archive of ``size`` bytes claims that cannot be; torch writes each entry once, uncompressed, and nothing else."""
    entries = archive.infolist()
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        return "two entries have the same name"
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            return f"{entry.filename} is compressed or encrypted, which torch does not do"
        if entry.file_size != entry.compress_size or entry.header_offset + entry.file_size > size:
            return f"{entry.filename} claims {entry.file_size} bytes in a file of {size}"
    if (total := sum(entry.file_size for entry in entries)) > size:
        return f"its entries claim {total} bytes in a file of {size}"
    assert archive.fp is not None  # the archive is open
    archive.fp.seek(size - END_BYTES)
    if archive.fp.read(len(END)) != END or min((entry.header_offset for entry in entries), default=0) > 0:
        return "something stands before its first entry or after its end"
    return None


def wrong_pickle(archive: zipfile.ZipFile) -> str | None:
    """What the entry ``data.pkl`` says that the other entries are not; None where each storage has as many bytes as is said."""
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    folder = next(iter(sizes), "").split("/")[0]
    if f"{folder}/data.pkl" not in sizes or not all(name.startswith(f"{folder}/") for name in sizes):
        return "it is no archive of torch"
    for key, wanted in storages(archive.read(f"{folder}/data.pkl")):
        name = f"{folder}/data/{key}"
        if sizes.get(name) != wanted:
            there = f"has {sizes[name]}" if name in sizes else "is missing"
            return f"a tensor needs {wanted} bytes of {name}, which {there}"
    return None


def storages(pickled: bytes) -> Iterator[tuple[str, int]]:
    """Key and bytes of every storage that a pickle names, found without following its instructions.

    torch always writes a storage in the same instructions: a mark, five constants, a tuple of them, and that this names a storage.
    A constant that was written before is taken from the memo. Another order is no pickle of torch's.

    Raises:
        MoreThanTensors: it names a class or a function that is not needed for tensors.
        ValueError: it is no pickle, or a storage is not named in this way.
    """
    memo: dict[Any, tuple[str, Any]] = {}
    last: deque[tuple[str, Any]] = deque(maxlen=len(NAMES_STORAGE))  # instructions, each with its constant
    for op, argument, _ in pickletools.genops(pickled):
        if op.name in ("BINPUT", "LONG_BINPUT"):
            if last and last[-1][0] in TEXT + NAME + COUNT:
                memo[argument] = last[-1]
            else:
                memo.pop(argument, None)
        elif op.name in ("BINGET", "LONG_BINGET"):
            last.append(memo.get(argument, (op.name, None)))
        elif op.name == "BINPERSID":
            yield named_storage(last)
            last.append((op.name, None))
        else:
            if op.name in NAME and argument not in (*TENSORS, *STORAGES):
                raise MoreThanTensors(str(argument).replace(" ", "."))
            last.append((op.name, argument))


def named_storage(last: deque[tuple[str, Any]]) -> tuple[str, int]:
    """Key and bytes of the storage that the instructions ``last`` name."""
    if len(last) == len(NAMES_STORAGE) and all(op in ops for (op, _), ops in zip(last, NAMES_STORAGE, strict=True)):
        _, word, kind, key, _, count, _ = (argument for _, argument in last)
        if word == "storage" and kind in STORAGES:
            return str(key), STORAGES[str(kind)] * int(str(count))
    raise ValueError("a storage is not named as torch names it")
