"""What the recipes share of the methods that answer questions about an image: scores of held-out questions, and a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import WATCH, FolderSettings, image_recipe, single_view, with_image_scores

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


def solved_questions(method: nn.Module, data: "ImageData", **where: Any) -> dict[str, float]:
    """The share of right answers about test images."""
    from fastssl.train.pretext import solved_share

    return solved_share(method, data, **where)


def draw(method: nn.Module, data: "ImageData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``answers.png``."""
    from fastssl.train.pretext import draw_answers

    return draw_answers(method, data, folder / "answers.png", device=device)


def pretext_recipe(
    settings: type[FolderSettings], build: Callable[[Any, Any], nn.Module], solved: tuple[str, str], **more: Any
) -> Recipe:
    """The recipe of a method with ``answer``. ``solved``: how a line and the table call the share of right answers. ``more`` holds
    the fields of ``Recipe`` that differ."""
    usual: dict[str, Any] = {
        "arguments": single_view,
        "monitor": with_image_scores(solved_questions),
        "watch": {**WATCH, "solved": (*solved, ".3f")},
        "loss": "cross-entropy",
    }
    return image_recipe(settings, build, **(usual | more))


def part_encoder(config: FolderSettings, data: "ImageData", size: int, *, whole: bool) -> nn.Module:
    """The encoder that ``--backbone`` names, for parts of images of ``size`` pixels a side; ``whole``: and for whole images."""
    from fastssl.train.backbones import build_backbone
    from fastssl.train.evaluate import evaluating

    if whole:  # an encoder that does not take them says so itself
        encoder = build_backbone(config.backbone, data.image_size, data.channels, patch_size=config.patch_size, all_sizes=True)
    try:
        if not whole:
            encoder = build_backbone(config.backbone, size, data.channels, patch_size=config.patch_size)
        with torch.no_grad(), evaluating(encoder):
            encoder(torch.zeros(1, data.channels, size, size))
    except (UsageError, RuntimeError, ValueError, AssertionError) as error:
        parts = f"takes no parts of {size} x {size} pixels of images of --image-size {data.image_size}"
        raise UsageError(f"--backbone {config.backbone}: {parts}: {str(error).splitlines()[0]}") from None
    return encoder
