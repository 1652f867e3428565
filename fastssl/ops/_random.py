"""Where the random numbers of a mask come from: noise of torch's generators, or a seed for Philox on the device.

Every check comes before the draw, so that a call that is refused leaves generators as they were.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastssl.checks import as_python, check_dense


def check_place(op: str, device) -> torch.device | None:
    """The device as a ``torch.device`` on which this torch can make tensors, or None."""
    if device is None:
        return None
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"{op}: device must be a torch.device or its name, got {type(device).__name__}")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{op}: device must be a torch.device or its name, got {device!r}") from error
    if place.type in ("cpu", "meta") or torch.compiler.is_compiling():
        return place
    try:
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:  # NotImplementedError is one of the latter
        raise ValueError(f"{op}: device must be one that torch can use here, got {str(place)!r}") from error
    return place


def same_place(device: torch.device, wanted: torch.device) -> bool:
    """Whether ``device``, the device of a tensor or a generator, is ``wanted``, which may leave out the device's number."""
    return device.type == wanted.type and (wanted.index is None or device.index is None or device.index == wanted.index)


def check_generator(op: str, generator, device: torch.device | None, by: str = "device") -> None:
    """Refuses what is neither None nor a generator on ``device``, which the argument ``by`` fixes; None is any device."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator, got {type(generator).__name__}")
    if device is not None and not same_place(generator.device, device):
        raise ValueError(f"{op}: generator must be on {device}, got {generator.device} (follows from {by})")


def uniform(rows: int, length: int, generator: torch.Generator | None, device: torch.device | None) -> Tensor:
    """(rows, length) float32 from one call of ``torch.rand``, on ``device`` or where the generator is."""
    if generator is None:  # dynamo (2.13) traces no dynamic shape beside the keyword
        return torch.rand(rows, length, device=device)
    return torch.rand(rows, length, generator=generator, device=device or generator.device)


def seed_tensor(op: str, seed, device: torch.device | None, by: str = "device") -> Tensor:
    """The seed as () int64 on the device where the ids are wanted."""
    if isinstance(seed, Tensor):
        check_dense(op, "seed", seed)
        check_mode(op, "seed", seed)
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(
                f"{op}: seed must be a whole number or a one-element int64 tensor, got {seed.dtype} {tuple(seed.shape)}"
            )
        if device is not None and not same_place(seed.device, device):
            raise ValueError(f"{op}: seed must be on {device}, got {seed.device} (follows from {by})")
        return seed.reshape(())
    seed = as_python(seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be a whole number or a one-element int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed must be in [-2^63, 2^63), got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)


def seed_of(op: str, seed, generator, device: torch.device | None, beside: tuple[str, Tensor] | None = None) -> Tensor:
    """The seed as () int64 on ``device``: the given one, or one that the generator draws there, without a sync.

    ``beside`` is the name and the value of another tensor of the call.
    """
    by = "device"
    if beside is not None:
        by = beside[0]
        _check_fake(op, seed, *beside)
    if seed is not None:
        if generator is not None:
            raise ValueError(f"{op}: only one of generator and seed can be given")
        return seed_tensor(op, seed, device, by)
    check_generator(op, generator, device, by)
    device = device or (generator.device if generator else None)
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, generator=generator, device=device)


def check_mode(op: str, name: str, value: Tensor) -> None:
    """Refuses a fake tensor outside every mode, because new tensors are made beside it."""
    if isinstance(value, FakeTensor) and torch._C._len_torch_dispatch_stack() == 0 and not torch.compiler.is_compiling():
        raise ValueError(f"{op}: {name} must have data, or be used within its FakeTensorMode")


def _check_fake(op: str, seed, name: str, value: Tensor) -> None:
    """Refuses a seed, given or made here, that is a fake tensor where ``value`` is none, or the reverse."""
    if torch.compiler.is_compiling():
        return
    modes = torch._C._len_torch_dispatch_stack() > 0
    fake = isinstance(seed if isinstance(seed, Tensor) else torch.empty(0) if modes else None, FakeTensor)
    if fake != isinstance(value, FakeTensor):
        raise ValueError(f"{op}: {name} and seed must both be fake tensors or both have data")
