"""Where the random numbers of a mask come from: noise of torch's generators, or a seed for Philox on the device."""

import torch
from torch import Tensor


def uniform(rows: int, length: int, generator: torch.Generator | None, device) -> Tensor:
    """(rows, length) float32 of one call of ``torch.rand``, on ``device`` or where the generator is."""
    if generator is None:  # dynamo (2.13) traces no dynamic shape beside the keyword
        return torch.rand(rows, length, device=device)
    return torch.rand(rows, length, generator=generator, device=device or generator.device)


def seed_tensor(op: str, seed, device) -> Tensor:
    """() int64 on the device where the ids are wanted."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(
                f"{op}: seed must be a whole number or a one-element int64 tensor, got {seed.dtype} {tuple(seed.shape)}"
            )
        if device is not None and seed.device.type != torch.device(device).type:
            raise ValueError(f"{op}: seed must be on {device}, got {seed.device}")
        return seed.reshape(())
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be a whole number or a one-element int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed must be in [-2^63, 2^63), got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)


def seed_of(op: str, seed, generator, device: torch.device | str | None) -> Tensor:
    """() int64 on ``device``: the given seed, or one that the generator draws there, without a sync."""
    if seed is not None:
        if generator is not None:
            raise ValueError(f"{op}: only one of generator and seed can be given")
        return seed_tensor(op, seed, device)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator, got {type(generator).__name__}")
    if generator is not None and device is not None and generator.device.type != torch.device(device).type:
        raise ValueError(f"{op}: generator must be on {device}, got {generator.device}")
    device = device or (generator.device if generator else None)
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, generator=generator, device=device)
