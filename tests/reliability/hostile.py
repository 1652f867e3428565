"""Checkpoints that were made to do harm: code, claims of terabytes, reads beyond the end, values of other types and shapes."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

TERABYTES = 1 << 42
INFO = "archive/data.pkl"


class Code:
    """Unpickled by Python's own pickle, it makes the file ``path``."""

    def __init__(self, call: Callable, *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


def codes(marker: Path) -> dict[str, object]:
    """Objects that run a program when they are unpickled; each would make the file ``marker``."""
    touch = f"touch {marker}"
    return {
        "os.system": Code(os.system, touch),
        "eval": Code(eval, f"__import__('os').system('{touch}')"),
        "exec": Code(exec, f"open({str(marker)!r}, 'w')"),
        "open": Code(open, str(marker), "w"),
        "os.popen": Code(os.popen, touch),
        "torch.load": Code(torch.load, str(marker)),
        "storage from file": Code(torch.UntypedStorage.from_file, str(marker), True, 8),
    }


def entries(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def sealed(parts: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these entries whose checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return out.getvalue()


def saved(state: object) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def with_pickle(archive: bytes, pickled: bytes) -> bytes:
    return sealed({**entries(archive), INFO: pickled})


def claimed(archive: bytes, at: str, number: int) -> bytes:
    """The same, with a number of bytes in the central directory of its first large entry."""
    content = bytearray(archive)
    place = content.rfind(b"PK\x01\x02", 0, content.rfind(b"archive/data/0"))
    struct.pack_into("<I", content, place + {"size": 24, "compressed": 20, "offset": 42}[at], number)
    return bytes(content)


def call(function: str, argument: bytes) -> bytes:
    """A pickle of {"fastssl": function(argument)}, the argument given as an instruction."""
    module, name = function.rsplit(".", 1)
    body = f"c{module}\n{name}\n".encode() + b"(" + argument + b"tR"
    return b"\x80\x02}X\x07\x00\x00\x00fastssl" + body + b"s."


def long(number: int) -> bytes:
    digits = number.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + digits


def archives(whole: bytes, marker: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that ask for code, memory or other people's memory; all of them are to be refused."""
    state = torch.load(io.BytesIO(whole), weights_only=True)
    for name, code in codes(marker).items():
        yield f"{name}, as torch saves it", saved({**state, "extra": code})
        yield f"{name}, a plain pickle", pickle.dumps(code)
        yield f"{name}, of the first torch", _legacy(code)
    for at in ("size", "compressed", "offset"):
        yield f"an entry whose {at} is 4 GiB", claimed(whole, at, 0xFFFFFFF0)
    yield "a bomb of 256 MiB", sealed({**entries(whole), "archive/data/0": bytes(1 << 28)}, zipfile.ZIP_DEFLATED)
    yield "an entry twice", _twice(whole)
    yield "a program of TorchScript", _script()
    yield "something before the archive", b"PK\x03\x04" + whole
    yield "something after the archive", whole + bytes(100)
    for number in (300, 1 << 20, TERABYTES, -1):
        yield f"a storage of {number} numbers", with_pickle(whole, _storage(number))
    for function in ("builtins.bytearray", "torch.FloatTensor", "torch.storage.UntypedStorage", "torch.FloatStorage"):
        yield f"{function}(terabytes)", with_pickle(whole, call(function, long(TERABYTES)))
    one = torch.ones(1)
    weights = state["state_dict"]
    name = next(iter(weights))
    for what, tensor in {
        "one number spread over terabytes": one.expand(TERABYTES),
        "meta": torch.empty(TERABYTES, device="meta"),
        "sparse": torch.sparse_coo_tensor([[TERABYTES - 1], [0]], [1.0], (TERABYTES, 8)),
        "quantized": torch.quantize_per_tensor(one, 1.0, 0, torch.qint8),
    }.items():
        yield what, saved({**state, "state_dict": {**weights, name: tensor}})
        yield f"{what}, of the optimizer", saved({**state, "optimizer_states": [{"state": {0: {"exp_avg": tensor}}}]})
    yield from _nests(state)


def _legacy(code: object) -> bytes:
    out = io.BytesIO()
    torch.save({"fastssl": code}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _script() -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), out)
    return out.getvalue()


def _twice(whole: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in entries(whole).items():
            file.writestr(name, content)
        file.writestr(INFO.upper(), b".")
    return out.getvalue()


def _storage(number: int) -> bytes:
    """The pickle of {"fastssl": a tensor of one number whose storage claims ``number`` of them}."""
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + long(number) + b"tQ"
    rest = b"K\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x07\x00\x00\x00fastsslctorch._utils\n_rebuild_tensor_v2\n(" + pid + rest + b"s."


def _nests(state: dict) -> Iterator[tuple[str, bytes]]:
    """Lists that hold themselves, lie deep, or double: 2^40 of them in a few bytes."""
    itself: list = []
    itself.append(itself)
    deep: list = []
    for _ in range(400):
        deep = [deep]
    double: list = [1.0]
    for _ in range(30):
        double = [double, double]
    for name, value in {"a list of itself": itself, "a list 400 deep": deep, "a list that doubles": double}.items():
        yield name, saved({**state, "optimizer_states": value})
        yield f"{name}, as the data", saved({**state, "fastssl": {**state["fastssl"], "data": value}})


ODD = (None, "x", -1, 1 << 70, float("nan"), True, [], {}, [1, "x"], {"x": {}}, 0.5, torch.ones(2), torch.zeros(0, 3))


def paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to every value inside dictionaries and lists, outermost first."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, each in inside:
        yield from paths(each, (*path, key))


def exchanged(value: object, path: tuple, new: object) -> object:
    """A copy with another value at the end of ``path``."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: exchanged(value.get(key), tuple(rest), new)}
    parts = list(value)
    parts[key] = exchanged(parts[key], tuple(rest), new)
    return type(value)(parts)


def odd_values(state: dict, times: int, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """``times`` checkpoints in which one value is of another type or size."""
    every = list(paths(state))
    for _ in range(times):
        top = chance.choice(list(state))
        path = chance.choice([path for path in every if path[0] == top])
        new = chance.choice(ODD)
        yield f"{'.'.join(map(str, path))} = {str(new)[:30]!r}", saved(exchanged(state, path, new))
