"""A stand-in for a GPU, so that errors in the tests themselves show on a machine without a GPU.

Tensors of device "cuda" hold memory of the CPU, and every op on them runs on the CPU. What torch refuses on a GPU is refused here
too: operands on two devices, and a wait for the device while ``set_sync_debug_mode("error")`` holds or a graph is captured. A
captured graph keeps its calls, leaves the state as it was, and makes the calls again at a replay. No kernel for GPUs runs.
"""

import types
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select, aten.bincount}
MOVING = {aten._to_copy, aten.copy_}
#: ``graph`` is the Graph that is being captured; ``strict`` says whether a wait is an error.
state = types.SimpleNamespace(graph=None, strict=False)


class OnDevice(torch.Tensor):
    """A tensor that says it is on the GPU; ``elem`` is the same memory, on the CPU."""

    @staticmethod
    def __new__(cls, elem: torch.Tensor):
        tensor = torch.Tensor._make_subclass(cls, elem, False, dispatch_device=True, device_for_backend_keys=CUDA)
        tensor.elem = elem
        return tensor

    @property
    def device(self):
        return CUDA

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def __repr__(self):
        return f"OnDevice({self.elem!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]


def _waits(func, tensors, args, kwargs) -> bool:
    """Whether torch would wait for a GPU in this op."""
    packet = func.overloadpacket
    if packet in MOVING:
        source = args[0] if packet is aten._to_copy else args[1]
        target = kwargs.get("device") or source.device if packet is aten._to_copy else args[0].device
        return torch.device(target).type != source.device.type and not kwargs.get("non_blocking", False)
    if not any(isinstance(t, OnDevice) for t in tensors):
        return False
    if packet is aten.index:
        return any(t is not None and (t.dtype == torch.bool or not isinstance(t, OnDevice)) for t in args[1])
    if packet in (aten.index_put, aten.index_put_):
        number = args[2].numel() == 1 and not isinstance(args[2], OnDevice)
        return not number and any(t is not None and t.dtype == torch.bool for t in args[1])
    return packet in WAITING


def _check_devices(func, tensors) -> None:
    """Refuses operands on two devices. A number on the CPU may stand beside tensors on the GPU, except in fastssl's own ops."""
    alone = 0 if func.namespace == "aten" else -1
    indices = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
    if func.overloadpacket in MOVING or indices or not any(isinstance(t, OnDevice) for t in tensors):
        return
    for t in tensors:
        if not isinstance(t, OnDevice) and t.dim() > alone:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu {tuple(t.shape)}")


def _written(func, args, kwargs) -> list[torch.Tensor]:
    if func is aten.native_batch_norm.default:
        return [t for t in args[3:5] if t is not None]  # the schema does not say that it writes them
    schema = func._schema.arguments
    given = [*zip(schema, args, strict=False), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
    return [t for a, value in given if a.alias_info and a.alias_info.is_write for t in tensors_in(value)]


def tensors_in(value) -> list[torch.Tensor]:
    return [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]


def dispatch(func, args, kwargs):
    if func is torch.ops.prim.device.default:
        return CUDA
    if func is aten._fused_sdp_choice.default:
        return 0  # plain attention: the fused kernels have other names on each device
    tensors = tensors_in((args, kwargs))
    _check_devices(func, tensors)
    if (state.strict or state.graph) and _waits(func, tensors, args, kwargs):
        raise RuntimeError(f"{func}: waits for the GPU")
    on_device = any(isinstance(t, OnDevice) for t in tensors)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == "cuda"
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif func.overloadpacket is aten.copy_:
        on_device = isinstance(args[0], OnDevice)
    generator = kwargs.get("generator")
    if generator is not None and on_device:
        raise RuntimeError(f"expected a 'cuda' generator, found {generator.device.type!r}")
    wrappers = {id(t.elem): t for t in tensors if isinstance(t, OnDevice)}
    args, kwargs = tree_map_only(OnDevice, lambda t: t.elem, (args, kwargs))
    out = state.graph.record(func, args, kwargs) if state.graph else func(*args, **kwargs)
    leaves, form = tree_flatten(out)
    leaves = [wrappers.get(id(t), OnDevice(t) if on_device else t) if isinstance(t, torch.Tensor) else t for t in leaves]
    return tree_unflatten(leaves, form)


class Device(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


# --- streams and graphs ---------------------------------------------------------------------------------------------------------


class Stream:
    def __init__(self, *_, **__):
        self.cuda_stream = 0

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        pass


def _place(t: torch.Tensor) -> int:
    return t.untyped_storage().data_ptr()


class Graph:
    """A ``torch.cuda.CUDAGraph`` as far as values go."""

    def __init__(self):
        self.calls, self.new, self.before = [], set(), {}

    def record(self, func, args, kwargs):
        for t in _written(func, args, kwargs):
            if _place(t) not in self.new | self.before.keys():
                self.before[_place(t)] = (t.untyped_storage(), t.untyped_storage().clone())
        out = func(*args, **kwargs)
        given = {_place(t) for t in tensors_in((args, kwargs))}
        made = [None if _place(t) in given else t for t in tensors_in(out)]
        self.new |= {_place(t) for t in made if t is not None}
        self.calls.append((func, args, kwargs, made))
        return out

    def pool(self) -> tuple[int, int]:
        return 0, 0  # every graph has its own memory here

    def end(self) -> None:
        for storage, copy in self.before.values():
            storage.copy_(copy)
        for *_, made in self.calls:
            for t in made:
                if t is not None and t.is_floating_point():
                    t.fill_(float("nan"))

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            with torch._C._DisableTorchDispatch():
                for old, new in zip(made, tensors_in(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.copy_(new)


@contextmanager
def capture(graph: Graph, *_, **__):
    state.graph = graph
    try:
        yield
    finally:
        state.graph = None
        with torch._C._DisableTorchDispatch():
            graph.end()


# --- the beginning --------------------------------------------------------------------------------------------------------------


def set_sync_debug_mode(mode: str | int) -> None:
    assert mode in ("default", "warn", "error", 0, 2)
    state.strict = mode in ("error", 2)


def start() -> None:
    """Puts the stand-in in place for the whole process. It is called before a test module asks for a GPU."""
    torch._C._set_only_lift_cpu_tensors(True)
    torch.autograd.set_multithreading_enabled(False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    stream = Stream()
    stand_ins = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "synchronize": lambda *_: None,
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: 2 * state.strict,
        "device": lambda _: nullcontext(),
        "current_device": lambda: 0,
        "Stream": Stream,
        "stream": lambda s: nullcontext(s),
        "current_stream": lambda *_: stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "manual_seed": torch.manual_seed,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
    }
    for name, value in stand_ins.items():
        setattr(torch.cuda, name, value)
    modes = torch._C._len_torch_dispatch_stack
    torch._C._len_torch_dispatch_stack = lambda: modes() - 1  # torch must not take the mode below for a tracer
    Device().__enter__()
