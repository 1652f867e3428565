"""A Gluon kernel on the CPU, as plain Python over NumPy: a thread for each partition of ``warp_specialize``, real waiting at the
barriers. ``test_gluon.py`` uses it; layouts and registers mean nothing here, values, order and waiting do.

A copy by TMA is done some time after it was asked for, and a product of a warpgroup when it is waited for, so what overwrites a
stage too early, or reads one too soon, shows in the result. A barrier that is not passed within seconds is an error.
"""

import importlib.util
import random
import sys
import threading
import time
import types
from contextlib import contextmanager

import numpy as np
import torch

PATIENCE_S = 20.0


class Values(np.ndarray):
    """A block of numbers; bfloat16 is float32 that was rounded."""

    def to(self, dtype):
        return block(rounded(np.asarray(self), dtype))


def block(array):
    return np.asarray(array).view(Values)


def rounded(array, dtype):
    """``dtype``: a NumPy type, or a torch one of 16 bits."""
    if isinstance(dtype, torch.dtype):
        as_torch = torch.from_numpy(np.array(array, dtype=np.float32))
        return as_torch.to(dtype).float().numpy()
    return np.asarray(array).astype(dtype)


class Pointer:
    """Places ``at`` of a flat tensor."""

    def __init__(self, tensor, at=0):
        flat = tensor if tensor.dim() == 1 and tensor.stride(0) == 1 else tensor.as_strided((_reach(tensor),), (1,))
        self.tensor, self.at = flat, at

    @property
    def dtype(self):
        return types.SimpleNamespace(element_ty=self.tensor.dtype)

    def __add__(self, offset):
        found = Pointer.__new__(Pointer)
        found.tensor, found.at = self.tensor, self.at + np.asarray(offset)
        return found


def _reach(tensor):
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


class Shared:
    """Stages of shared memory, NaN until something is copied there."""

    def __init__(self, dtype, shape):
        self.dtype, self.array = dtype, np.full(shape, np.nan, np.float32)

    def index(self, stage):
        return Stage(self, int(stage))


class Stage:
    def __init__(self, memory, stage, turned=False):
        self.memory, self.stage, self.turned, self.dtype = memory, stage, turned, memory.dtype

    def permute(self, order):
        assert order == (1, 0)
        return Stage(self.memory, self.stage, True)

    def read(self):
        found = self.memory.array[self.stage]
        return found.T if self.turned else found


class Barriers:
    def __init__(self, shape):
        self.all = [Barrier() for _ in range(shape[0])]

    def index(self, stage):
        return self.all[int(stage)]


class Barrier:
    """``count`` arrivals end a phase, and so do all bytes that are expected."""

    def __init__(self):
        self.condition, self.phase, self.arrived, self.bytes = threading.Condition(), 0, 0, 0

    def init(self, count):
        self.count = count

    def come(self, arrivals=0, expected=0, copied=0):
        with self.condition:
            self.arrived, self.bytes = self.arrived + arrivals, self.bytes + expected - copied
            assert self.arrived <= self.count, "more arrivals than a phase takes"
            if self.arrived == self.count and self.bytes == 0:
                self.phase, self.arrived = self.phase + 1, 0
                self.condition.notify_all()

    def wait(self, parity):
        """Until the phase of this parity is over: before the first, that of parity 1 is."""
        with self.condition:
            if not self.condition.wait_for(lambda: (self.phase - 1) % 2 == int(parity), PATIENCE_S):
                raise TimeoutError("nobody came to the barrier")


class Descriptor:
    def __init__(self, tensor, shape, layout):
        self.tensor, self.shape, self.layout, self.dtype = tensor, shape, layout, tensor.dtype
        self.block_type = types.SimpleNamespace(nbytes=2 * shape[0] * shape[1])

    from_tensor = classmethod(lambda cls, tensor, shape, layout: cls(tensor, shape, layout))


class Machine:
    """What a kernel's module imports from Triton; ``threads`` are the copies under way."""

    def __init__(self, delays=0.0):
        self.local, self.delays, self.errors = threading.local(), delays, []
        self.gl = self._language()
        self.mbarrier = types.SimpleNamespace(
            MBarrierLayout=lambda: "barriers",
            init=lambda barrier, count: barrier.init(count),
            expect=lambda barrier, count: barrier.come(arrivals=1, expected=count),
            arrive=lambda barrier, count: barrier.come(arrivals=count),
            wait=lambda barrier, parity: barrier.wait(parity),
        )
        self.tma = types.SimpleNamespace(async_copy_global_to_shared=self._copy)

    def _pause(self):
        if self.delays:
            time.sleep(random.random() * self.delays)

    def _copy(self, descriptor, at, barrier, stage):
        def copy():
            self._pause()
            first, rows = int(at[0]), descriptor.shape[0]
            found = descriptor.tensor[first : first + rows].float().numpy()
            stage.memory.array[stage.stage] = np.nan
            stage.memory.array[stage.stage, : len(found)] = found
            barrier.come(copied=descriptor.block_type.nbytes)

        self._start(copy)

    def _start(self, function, *arguments):
        """In a thread that acts for this one's program; what it raises is kept."""
        place = self.local.place

        def run():
            self.local.place = place
            try:
                function(*arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def multiply(self, a, b, acc, use_acc=True, is_async=False):
        assert is_async
        return lambda: block((acc if use_acc else 0.0) + np.asarray(a, np.float32) @ b.read())

    def wait_for_products(self, outstanding, deps):
        self._pause()
        return deps[0]()

    def _specialise(self, parts, warps, registers):
        assert len(parts) == len(warps) + 1 == len(registers) + 1
        for thread in [self._start(function, *arguments) for function, arguments in parts]:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _language(self):
        def load(pointer, mask=None, other=0.0):
            at = np.asarray(pointer.at)
            inside = np.broadcast_to(True if mask is None else np.asarray(mask), at.shape)
            assert not inside.any() or (at[inside].min() >= 0 and at[inside].max() < pointer.tensor.numel()), "out of bounds"
            found = pointer.tensor[torch.from_numpy(np.where(inside, at, 0))]
            found = found.float().numpy() if found.is_floating_point() else found.numpy()
            return block(np.where(inside, found, np.asarray(other, found.dtype)))

        def store(pointer, value, mask):
            at, inside = np.broadcast_arrays(pointer.at, mask)
            pointer.tensor[torch.from_numpy(at[inside])] = torch.from_numpy(np.asarray(value)[inside]).to(pointer.tensor.dtype)

        allocate = lambda dtype, shape, layout: Barriers(shape) if layout == "barriers" else Shared(dtype, shape)  # noqa: E731
        layout = lambda *args, **kwargs: "layout"  # noqa: E731
        get_default = types.SimpleNamespace(get_default_for=layout)
        return types.SimpleNamespace(
            constexpr=type("constexpr", (float,), {"__new__": lambda cls, v: v if isinstance(v, int) else float(v)}),
            int64=np.int64, float32=np.float32, bfloat16=torch.bfloat16, float16=torch.float16,
            program_id=lambda axis: block(np.int32(self.local.place[axis])), load=load, store=store,
            arange=lambda lo, hi, layout: block(np.arange(lo, hi, dtype=np.int32)),
            zeros=lambda shape, dtype, layout: block(np.zeros(shape, dtype)),
            minimum=lambda a, b: block(np.minimum(a, b)), where=lambda c, a, b: block(np.where(c, a, b)),
            min=lambda a, axis: block(np.min(a, axis)), max=lambda a, axis: block(np.max(a, axis)),
            exp2=lambda a: block(np.exp2(np.asarray(a, np.float32))), convert_layout=lambda a, layout: a, static_range=range,
            allocate_shared_memory=allocate, warp_specialize=self._specialise, SliceLayout=layout, DotOperandLayout=layout,
            NVMMADistributedLayout=layout, NVMMASharedLayout=get_default,
        )  # fmt: skip


class Kernel:
    """``kernel[grid](...)``: every program, one after the other."""

    def __init__(self, function, machine):
        self.function, self.machine = function, machine

    def __getitem__(self, grid):
        def launch(*arguments, num_warps):
            arguments = [Pointer(t) if isinstance(t, torch.Tensor) else t for t in arguments]
            for place in np.ndindex(*grid):
                self.machine.local.place = place
                with np.errstate(over="ignore", invalid="ignore"):
                    self.function(*arguments)

        return launch

    def __call__(self, *arguments):
        return self.function(*arguments)


@contextmanager
def on_the_cpu(path, package, delays=0.0):
    """The module at ``path`` of ``package``, with this machine in the place of Gluon."""
    machine = Machine(delays)
    modules = {
        "triton.experimental.gluon": {"jit": lambda function: Kernel(function, machine), "language": machine.gl},
        "triton.experimental.gluon.language.nvidia.hopper": {
            "mbarrier": machine.mbarrier, "tma": machine.tma, "warpgroup_mma": machine.multiply,
            "warpgroup_mma_wait": machine.wait_for_products,
        },
        "triton.experimental.gluon.nvidia.hopper": {"TensorDescriptor": Descriptor},
    }  # fmt: skip
    before = {name: sys.modules.get(name) for name in (*modules, "triton.experimental")}
    for name, contents in modules.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(contents)
    sys.modules["triton.experimental"] = types.SimpleNamespace(gluon=sys.modules["triton.experimental.gluon"])
    try:
        spec = importlib.util.spec_from_file_location(f"{package}.on_the_cpu", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
