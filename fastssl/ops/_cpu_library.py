"""``fastssl/_cpu.so`` as an object: what it tells of itself and of this CPU, its switches, and the functions of ``fastssl._C``."""

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_TEXT, _FLAG, _NUMBER = ctypes.c_char_p, ctypes.c_bool, ctypes.c_int64
#: Functions that take nothing, and what they return.
_QUESTIONS: dict[str, Any] = {
    "interface": ctypes.c_void_p,
    "compiler": _TEXT,
    "torch": _TEXT,
    "cxx_standard": ctypes.c_int,
    "isas": _TEXT,
    "isa": _TEXT,
    "refusal": _TEXT,
    "units": _TEXT,
    "peak_units": _TEXT,
    "uses_brgemm": _FLAG,
    "most_kept_bytes": _NUMBER,
    "most_kept_rows": _NUMBER,
}
#: Functions with arguments: what they take, and what they return.
_CALLS: dict[str, tuple[list[Any], Any]] = {
    "set_isa": ([_TEXT], _FLAG),
    "peak_flops": ([_TEXT, _TEXT, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double)], _FLAG),
    "use_brgemm": ([_FLAG], None),
    "keep_at_most": ([_NUMBER], None),
    "set_unlucky_products": ([_FLAG], None),
}


class CpuLibrary:
    """The C++ kernels, which are registered for the CPU key while this object is made, but for those over lists of tensors.

    ``join`` or ``register_list_ops`` registers these. After ``join`` the functions of the module ``fastssl._C`` are attributes too.
    Raises OSError where the library does not load.
    """

    def __init__(self, path: Path):
        torch.ops.load_library(str(path))
        self._library = ctypes.CDLL(str(path))
        for name, (arguments, result) in {**{name: ([], result) for name, result in _QUESTIONS.items()}, **_CALLS}.items():
            function = getattr(self._library, f"fastssl_{name}")
            function.argtypes, function.restype = arguments, result

    def join(self, host: ModuleType) -> None:
        """Gives the module the kernels that it calls, and takes over its functions. RuntimeError if they do not fit.

        The module registers the ops over lists: to it torch lends the tensors of a list, where the library is given new ones.
        """
        host.attach(self._library.fastssl_interface())
        self.__dict__.update({name: value for name, value in vars(host).items() if not name.startswith("_") and callable(value)})

    def register_list_ops(self) -> None:
        """Registers the ops over lists where no module has joined in this process."""
        self._library.fastssl_register_list_ops()

    def _ask(self, name: str) -> str:
        return getattr(self._library, f"fastssl_{name}")().decode()

    def _names(self, name: str) -> list[str]:
        text = self._ask(name)
        return text.split(",") if text else []

    def build_info(self) -> dict[str, Any]:
        """``compiler``, ``cxx_standard`` as 20, and ``torch``, whose headers it was compiled with."""
        return {
            "compiler": self._ask("compiler"),
            "torch": self._ask("torch"),
            "cxx_standard": self._library.fastssl_cxx_standard(),
        }

    def isas(self) -> list[str]:
        """Instruction sets that this machine can run, narrowest first."""
        return self._names("isas")

    def isa(self) -> str:
        """The instruction set in use."""
        return self._ask("isa")

    def set_isa(self, name: str) -> None:
        """Uses another instruction set; ValueError if this machine lacks it."""
        if not self._library.fastssl_set_isa(name.encode()):
            raise ValueError(self._ask("refusal"))

    def units(self) -> list[str]:
        """16-bit multiply-add units that this CPU has, whether or not a kernel uses them."""
        return self._names("units")

    def peak_units(self) -> list[tuple[str, str]]:
        """(dtype, unit) of each peak that this machine can measure."""
        return [(dtype, unit) for dtype, unit in (pair.split(" ") for pair in self._names("peak_units"))]

    def peak_flops(self, dtype: str, unit: str) -> tuple[float, float]:
        """FLOP/s of all threads in registers, and in a tile that stays in L2 or 0; measured now, in 20 ms on a quiet machine.
        ValueError for what is not in ``peak_units``."""
        registers, tile = ctypes.c_double(), ctypes.c_double()
        if not self._library.fastssl_peak_flops(dtype.encode(), unit.encode(), ctypes.byref(registers), ctypes.byref(tile)):
            raise ValueError(self._ask("refusal"))
        return registers.value, tile.value

    def uses_brgemm(self) -> bool:
        """Whether products of bfloat16 go through oneDNN, as they do on a CPU with AMX."""
        return self._library.fastssl_uses_brgemm()

    def use_brgemm(self, on: bool) -> None:
        """For tests: products of bfloat16 through oneDNN, or by our own code."""
        self._library.fastssl_use_brgemm(on)

    def most_kept(self) -> tuple[int, int]:
        """Bytes of tiles that NT-Xent and SupCon keep at most, and rows in float32."""
        return self._library.fastssl_most_kept_bytes(), self._library.fastssl_most_kept_rows()

    def keep_at_most(self, count: int) -> None:
        """For tests: changes the bytes of ``most_kept``."""
        self._library.fastssl_keep_at_most(count)

    def set_unlucky_products(self, on: bool) -> None:
        """For tests: tiles of logits come with last bits that depend on the tile, the order of the operands and the pass."""
        self._library.fastssl_set_unlucky_products(on)
