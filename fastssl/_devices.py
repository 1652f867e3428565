"""The device that an option names: one that torch computes on here, or a sentence that says why it cannot."""

import torch

from ._ending import UsageError
from ._options import closest

KINDS = ("cpu", "cuda", "mps", "xpu")
OTHER_WORDS = ("gpu", "nvidia")  # that people use for cuda


def why_no_gpu() -> str:
    """Why torch finds no GPU of NVIDIA or AMD here; "" where it finds one."""
    if torch.cuda.is_available():
        return ""
    return "torch sees no GPU" if torch.version.cuda or torch.version.hip else "this torch is built without CUDA"


def unknown_device(name: str) -> str:
    """What is wrong with a name that torch does not take, and which one is meant."""
    kind = name.partition(":")[0].strip()
    if kind in KINDS:
        return f"names no device; a number may follow the colon, such as {kind}:0"
    hint = "; did you mean cuda?" if kind.casefold() in OTHER_WORDS else closest(kind, KINDS)
    return "names no device" + (hint or f"; known: {', '.join(KINDS)}")


def usable_device(name: str) -> torch.device:
    """The device that ``--device`` names, on which a sum was seen to work."""
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise UsageError(f"--device {name}: {unknown_device(name)}") from None
    try:
        if torch.ones(2, device=device).sum().item() == 2:
            return device
    except Exception as error:  # each backend has its own types
        reason = why_not(device, error)
    else:
        reason = "it computes nothing"
    raise UsageError(f"--device {name}: cannot be used here: {reason}")


def why_not(device: torch.device, error: Exception) -> str:
    """Why nothing could be computed on a device that raised ``error``."""
    if device.type != "cuda":
        return f"torch computes nothing on {device.type} on this machine"
    if why := why_no_gpu():
        return why
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        return f"the last of {count} GPUs is cuda:{count - 1}" if count > 1 else "the only GPU is cuda:0"
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
