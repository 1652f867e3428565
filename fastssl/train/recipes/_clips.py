"""What the recipes of video methods share: settings, clips, views, scores.

The encoder sees single frames. kNN and linear probe are on the still photographs of ``data.stills``, as for all image methods.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import SCORES, WATCH, VotedSettings, image_points, image_scores
from fastssl.train.recipes._options import PatchSize
from fastssl.train.settings import Option, data_name

if TYPE_CHECKING:
    from fastssl.train.clips import ClipData


@dataclass(frozen=True, kw_only=True)
class ClipSettings(VotedSettings):
    """Of every method that learns from clips."""

    data: Annotated[
        str,
        Option("clips (rendered from the pictures of photos by moving cameras), or folder:PATH of video files", parse=data_name),
    ] = "clips"
    patch_size: PatchSize = None
    batch_size: int = 64
    min_scale: float = 0.5
    frames: Annotated[int, Option("frames of a clip", least=5, most=64)] = 9


def load(config: ClipSettings) -> "ClipData":
    from fastssl.train.clips import load_clips

    return load_clips(config.data, config.image_size, config.frames)


def encoder(config: ClipSettings, data: "ClipData") -> nn.Module:
    """The encoder of single frames that ``--backbone`` names."""
    from fastssl.train.backbones import build_backbone

    return build_backbone(config.backbone, data.image_size, patch_size=config.patch_size)


def clip_views(config: ClipSettings, data: "ClipData") -> nn.Module:
    from fastssl.train.clips import ClipViews

    return ClipViews(data.image_size, min_scale=config.min_scale, mirror=data.mirror)


def one_crop(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor]:
    """One crop of each clip."""
    return (module.views(batch[0]),)


def test_clips(data: "ClipData", device: torch.device | str, workers: int, most: int | None) -> Iterator[tuple[Tensor, ...]]:
    """Batches of test clips, as floats (B, T, 3, S, S), and what else the batches hold."""
    from fastssl.train.augment import as_float
    from fastssl.train.data import batches, limited
    from fastssl.train.evaluate import centre

    for clips, *more in batches(data.test if most is None else limited(data.test, most), 128, workers=workers):
        if len(clips):
            cropped = centre(as_float(clips.flatten(0, 1).to(device)), data.image_size).unflatten(0, clips.shape[:2])
            yield (cropped, *(part.to(device) for part in more))


def clip_scores(own: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """The scores of a method: ``image_scores`` of the photographs, and ``own`` (method, test clips) -> scores of its task."""

    def scores(
        method: nn.Module,
        data: "ClipData",
        config: ClipSettings,
        *,
        device: torch.device | str,
        workers: int,
        most: int | None,
        full: bool,
    ) -> dict[str, float]:
        from fastssl.train.evaluate import evaluating

        found = image_scores(method, data.stills, config, device=device, workers=workers, most=most, full=full)
        with evaluating(method), torch.no_grad():
            return found | own(method, test_clips(data, device, workers, most))

    return scores


def found_among(parts: list[Tensor]) -> dict[str, float]:
    """``found`` of embeddings (B, n, D): the share of the first ones to which their second is the nearest of all but first ones."""
    if not parts:
        return {}
    rows = nn.functional.normalize(torch.cat(parts), dim=2)
    keys = rows[:, 1:].transpose(0, 1).flatten(0, 1)
    own = torch.arange(len(rows), device=rows.device)
    return {"found": ((rows[:, 0] @ keys.T).argmax(1) == own).float().mean().item()}


def still_points(
    method: nn.Module, data: "ClipData", *, device: torch.device | str, workers: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    return image_points(method, data.stills, device=device, workers=workers)


def clip_recipe(
    settings: type[ClipSettings],
    build: Callable[[Any, Any], nn.Module],
    own: Callable[..., dict[str, float]],
    watch: dict[str, tuple[str, str, str]],
    **more: Any,
) -> Recipe:
    """The recipe of a method that learns from clips. ``own`` and ``watch`` are the scores of its task and how they are called."""
    usual: dict[str, Any] = {
        "load": load,
        "augment": clip_views,
        "arguments": one_crop,
        "monitor": clip_scores(own),
        "points": still_points,
        "scores": SCORES,
        "watch": {**WATCH, **watch},
        "heading": "accuracy on test photographs",
        "unit": "clips",
        "encoder": "backbone",
    }
    return Recipe(settings=settings, build=build, **(usual | more))
