"""What the methods that learn from clips (B, T, ...) share: checks, and frames that are taken by their time."""

import torch
from torch import Tensor

from fastssl.checks import check_dense

from ._common import PlainMethod
from ._encoder import features_of


class FrameMethod(PlainMethod):
    """A method whose encoder sees single frames; ``embed`` takes frames, or any images."""

    def of_frames(self, frames: Tensor) -> Tensor:
        """frames (B, n, ...) -> their features (B, n, feature_dim)."""
        name = type(self).__name__
        z = features_of(self.backbone, frames.flatten(0, 1), self.feature_dim, name, given="frames of clips")
        return z.unflatten(0, frames.shape[:2])


def check_clips(name: str, clips: Tensor, least: int, batch: int = 1) -> None:
    """Refuses what is no dense tensor (B, T, ...) of at least ``batch`` clips with at least ``least`` frames."""
    check_dense(name, "clips", clips, "a tensor (B, T, ...)")
    if clips.ndim < 3 or 0 in clips.shape or clips.shape[1] < least or len(clips) < batch:
        sizes = f"T of at least {least}" if batch == 1 else f"B of at least {batch} and T of at least {least}"
        raise ValueError(f"{name}: clips must have shape (B, T, ...) with {sizes}, got {tuple(clips.shape)}")


def check_generator(name: str, generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{name}: generator must be a torch.Generator, got {type(generator).__name__}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"{name}: generator must be on the device of the clips, {device}, got {generator.device}")


def frames_at(clips: Tensor, times: Tensor) -> Tensor:
    """clips (B, T, ...), times (B, n) int64 -> the frames at those times (B, n, ...)."""
    return clips[torch.arange(len(clips), device=clips.device)[:, None], times]


def spaced(name: str, clips: Tensor, count: int, *, random: bool, generator: torch.Generator | None = None) -> Tensor:
    """Times (B, count) of frames as far apart as the clips allow, evenly; which is the first is drawn, or in the middle."""
    check_generator(name, generator, clips.device)
    stride = (clips.shape[1] - 1) // max(1, count - 1)
    spare = clips.shape[1] - 1 - stride * (count - 1)
    first = torch.full((len(clips),), spare // 2, device=clips.device)
    if random and spare:
        first = torch.randint(spare + 1, (len(clips),), generator=generator, device=clips.device)
    return first[:, None] + stride * torch.arange(count, device=clips.device)
