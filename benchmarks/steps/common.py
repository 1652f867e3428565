"""What the measured training steps share: sizes, the two sides, encoders, pictures, the accuracy check, gradient caching.

A method has two sides, "before" and "after" fastssl, with encoders of the same weights, and one ``Clock`` for both. Imports
``clock``, ``core.accuracy`` and ``peers``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.core import accuracy
from benchmarks.peers import load, ready_torchvision
from benchmarks.steps.clock import Clock

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Size:
    """A step takes ``batch`` pictures (pairs of views, pairs with texts) of ``image`` x ``image`` pixels.

    The encoders take ``micro`` of them at a time. ``small``: with small encoders, for rehearsals on a CPU.
    """

    batch: int
    micro: int
    image: int
    queue: int = 0
    tokens: int = 0
    small: bool = False


@dataclass(frozen=True)
class Setting:
    """Size, device and dtype of one case."""

    size: Size
    device: str
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)


@dataclass(frozen=True)
class Side:
    """``step()`` takes one training step and returns its loss, detached. ``uses``: part -> the code that computes it."""

    uses: dict[str, str]
    step: Callable[[], Tensor]


@dataclass(frozen=True)
class Checked:
    """The errors of both sides against float64, and what is wrong with them; "" where the case may be timed."""

    errors: dict[str, accuracy.Errors]
    wrong: str


@dataclass(frozen=True)
class Pair:
    """The two sides of a method. ``replaced``: the parts that fastssl computes on the side "after"."""

    sides: dict[str, Side]
    replaced: tuple[str, ...]
    check: Callable[[], Checked]


def judged(before: accuracy.Errors, after: accuracy.Errors, dtype: torch.dtype) -> Checked:
    """Compares errors with their limits: before, those of the same objective; after, twice the errors of before."""
    verdicts = {BEFORE: accuracy.verdict(before, dtype), AFTER: accuracy.verdict(after, dtype, before)}
    wrong = "; ".join(f"{side}: {text}" for side, text in verdicts.items() if text)
    return Checked({BEFORE: before, AFTER: after}, wrong)


def compare(at: Setting, rows: dict[str, Tensor], constant: tuple[str, ...], eager, before, after) -> Checked:
    """The accuracy check of a loss: ``eager`` in float64 against ``before`` and ``after`` under autocast.

    Each of them is called as loss(**rows), with rows (N, D); those that ``constant`` names get no gradient.
    """
    inputs = accuracy.leaves(rows, at.dtype, constant)
    truth = accuracy.eager_truth(eager, inputs)

    def errors(loss) -> accuracy.Errors:
        def call(**given: Tensor) -> Tensor:
            with at.autocast():
                return loss(**given)

        return accuracy.errors(call, inputs, truth)

    return judged(errors(before), errors(after), at.dtype)


def rows_of_pairs(at: Setting, width: int, names: tuple[str, str]) -> dict[str, Tensor]:
    """Two (batch, width) of normal numbers by name. Pairs are so noisy that the loss is far from 0."""
    generator = torch.Generator(at.device).manual_seed(1)
    first, noise = (torch.randn(at.size.batch, width, generator=generator, device=at.device) for _ in range(2))
    return dict(zip(names, (first, first + 3.0 * noise), strict=True))


def library(peer: str, form: str, constants: dict, eager: Callable) -> tuple[str, Callable]:
    """(name, call) of a library's loss, or of ``eager`` where the library cannot be imported."""
    adaptor = load(peer)
    if reason := adaptor.absent():
        return f"eager PyTorch ({reason})", eager
    try:
        return f"{peer} {adaptor.version()}", adaptor.forms[form](**constants)
    except Exception as error:  # a library that is there but broken
        return f"eager PyTorch ({peer}: {type(error).__name__})", eager


def pictures(at: Setting, count: int, seed: int, channels_last: bool = False) -> Tensor:
    """(count, 3, S, S) float32: smooth random fields with noise, which an untrained encoder can tell apart."""
    generator, side = torch.Generator(at.device).manual_seed(seed), at.size.image
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(count, 3, side, side, device=at.device, memory_format=layout)
    for part in out.split(256):
        coarse = torch.randn(len(part), 3, 7, 7, generator=generator, device=at.device)
        part.normal_(std=0.3, generator=generator).add_(F.interpolate(coarse, size=(side, side), mode="bilinear"))
    return out


def resnet(at: Setting) -> tuple[nn.Module, int]:
    """(encoder, width of its features): torchvision's ResNet-50 without its classifier, or a small convolutional encoder."""
    from fastssl.train.backbones import ConvEncoder, build_backbone

    if at.size.small:
        return ConvEncoder((8, 16, 32, 64)), 64
    ready_torchvision()
    return build_backbone("torchvision:resnet50", at.size.image), 2048


def channels_last(module: nn.Module, at: Setting) -> nn.Module:
    return module.to(at.device).to(memory_format=torch.channels_last)


def cached_step(at: Setting, clock: Clock, towers: Sequence[tuple[nn.Module, Tensor]], loss: Callable[..., Tensor]) -> Tensor:
    """Makes the gradients of a loss over a batch whose graph does not fit (gradient caching, Gao et al. 2021, section 3).

    The encoders run piece by piece, without a graph. The loss then gives the gradients of all embeddings. Then each piece runs once
    more, with a graph, and takes its part of these gradients backward. Returns the loss.

    Args:
        towers: encoders with their inputs (N, ...), taken in pieces of ``at.size.micro``; batch normalisation sees a piece.
        loss: one argument (N, D) for each tower.
    """
    clock.switch("encoder")
    with torch.no_grad(), at.autocast():
        rows = [torch.cat([encoder(part) for part in inputs.split(at.size.micro)]) for encoder, inputs in towers]
    rows = [row.requires_grad_() for row in rows]
    clock.switch("loss")
    with at.autocast():
        value = loss(*rows)
    value.backward()
    clock.switch("encoder")
    for (encoder, inputs), row in zip(towers, rows, strict=True):
        for part, gradient in zip(inputs.split(at.size.micro), row.grad.split(at.size.micro), strict=True):
            with at.autocast():
                out = encoder(part)
            out.backward(gradient)
    return value.detach()


def finish_step(clock: Clock, optimizer: torch.optim.Optimizer) -> None:
    clock.switch("optimizer")
    optimizer.step()
    optimizer.zero_grad()
