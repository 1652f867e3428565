"""Whether a compiled library is whole and for this machine, by its own headers: the system's loader reads beyond the end of a
file that was cut, and the process dies of it."""

import platform
import struct
import sys
from pathlib import Path

MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183, "ppc64le": 21, "s390x": 22, "riscv64": 243}
HEADER, PART = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")  # of ELF with 64 bits
LOADED = 1  # a part of the file that is mapped into memory


def why_unfit(path: Path) -> str | None:
    """Why a library cannot be loaded; None where nothing speaks against it, or where this system has another kind of libraries."""
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 2**32:
        return None
    if not path.is_file():
        return f"{path} is no file"
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            return f"{path} is cut short"
        magic, _, machine, _, _, parts, sections, _, _, _, count, section, many, _ = HEADER.unpack(head)
        if magic[:6] != b"\x7fELF\x02\x01":
            return f"{path} is no library of Linux with 64 bits"
        wanted = MACHINES.get(platform.machine().lower(), machine)
        if machine != wanted:
            name = next((name for name, number in MACHINES.items() if number == machine), f"number {machine}")
            return f"{path} is for another machine ({name}), and this is {platform.machine()}"
        file.seek(parts)
        table = file.read(count * PART.size)
    whole = [
        at + length
        for kind, _, at, _, _, length, _, _ in PART.iter_unpack(table[: len(table) // PART.size * PART.size])
        if kind == LOADED
    ]
    ends = max([parts + count * PART.size, sections + section * many, *whole])
    return f"{path} is cut short: {size} bytes of {ends}" if size < ends else None
