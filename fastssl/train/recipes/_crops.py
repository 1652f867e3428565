"""What the recipes of methods share that learn from several crops of an image: settings, crops, an encoder for crops of two sizes,
and a picture of what a transformer's class token looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import MOST_PIXELS, ViewSettings, image_recipe, total_steps
from fastssl.train.recipes._options import FinalMomentum, Frozen, HiddenDim, Momentum
from fastssl.train.settings import Option

if TYPE_CHECKING:
    from fastssl.train.data import ImageData


NO_CROPS = ("local_crops", 0)
SAME_TEMPERATURE = ("warmup_teacher_temperature", "teacher_temperature")


@dataclass(frozen=True, kw_only=True)
class CropSettings(ViewSettings):
    """Of every method that learns from large and small crops."""

    batch_size: int = 128
    min_scale: Annotated[
        float,
        Option("smallest share of an image that a large crop keeps, and the largest that a small one does", above=0, most=1),
    ] = 0.4
    local_crops: Annotated[int, Option("small crops of an image, beside two large ones", least=0)] = 4
    local_size: Annotated[
        int | None,
        Option(
            "side of the small crops in pixels",
            least=4,
            most=MOST_PIXELS,
            default="half of that of the large ones",
            unused_at=NO_CROPS,
        ),
    ] = None
    local_min_scale: Annotated[
        float, Option("smallest share of an image that a small crop keeps", above=0, most=1, unused_at=NO_CROPS)
    ] = 0.05


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(CropSettings):
    """Of DINO and iBOT."""

    out_dim: Annotated[int, Option("number of prototypes", least=2)] = 1024
    hidden_dim: HiddenDim = None
    bottleneck_dim: Annotated[int, Option("width of what is compared with the prototypes", least=1)] = 128
    student_temperature: Annotated[float, Option("temperature of the student", above=0)] = 0.1
    teacher_temperature: Annotated[float, Option("temperature of the teacher, after its warm-up", above=0)] = 0.04
    warmup_teacher_temperature: Annotated[
        float, Option("temperature of the teacher at the first step", above=0, unused_at=("temperature_warmup", 0))
    ] = 0.04
    temperature_warmup: Annotated[
        float, Option("share of the training over which it changes", least=0, most=1, unused_at=SAME_TEMPERATURE)
    ] = 0.3
    frozen: Frozen = 0.03
    momentum: Momentum = 0.99
    final_momentum: FinalMomentum = 1.0


def distillation(config: DistillationSettings, data: "ImageData") -> dict[str, Any]:
    """The arguments of ``DINO`` that the settings hold."""
    return {
        "out_dim": config.out_dim,
        "hidden_dim": config.hidden_dim,
        "bottleneck_dim": config.bottleneck_dim,
        "student_temperature": config.student_temperature,
        "teacher_temperature": (config.warmup_teacher_temperature, config.teacher_temperature),
        "warmup": config.temperature_warmup,
        "frozen": config.frozen,
        "momentum": config.momentum,
        "final_momentum": config.final_momentum,
        "total_steps": total_steps(config, data),
    }


def crop_backbone(config: CropSettings, data: "ImageData") -> nn.Module:
    """The encoder that ``--backbone`` names, for crops of both sizes. The built-in transformer has a class token here."""
    from fastssl.train.backbones import build_backbone, build_vit

    refuse_crops(config, data)
    if config.backbone != "vit":
        encoder = build_backbone(config.backbone, data.image_size, data.channels, patch_size=config.patch_size, all_sizes=True)
    else:
        how = {"channels": data.channels, "class_token": True, "dynamic_img_size": True}
        encoder = build_vit(data.image_size, config.patch_size, **how)
    if config.local_crops:
        side, training = local_side(config, data), encoder.training
        with torch.no_grad():
            try:
                encoder.eval()(torch.zeros(1, data.channels, side, side))
            except (RuntimeError, ValueError, AssertionError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(f"--local-size {side}: --backbone {config.backbone} takes no such crops: {reason}") from error
        encoder.train(training)
    return encoder


def refuse_crops(config: CropSettings, data: "ImageData") -> None:
    """Raises UsageError where small crops were asked for that are larger, or show more, than the large ones."""
    if config.local_crops and (config.local_size or 0) > data.image_size:
        raise UsageError(f"--local-size: must be at most {data.image_size}, the side of the large crops, got {config.local_size}")
    if config.min_scale < config.local_min_scale != CropSettings.local_min_scale:
        raise UsageError(f"--local-min-scale: must be at most --min-scale {config.min_scale}, got {config.local_min_scale}")


def local_side(config: CropSettings, data: "ImageData") -> int:
    """The side of the small crops: by default half of that of the large ones, in whole patches of the built-in transformer."""
    from fastssl.train.backbones import vit_patch_size

    step = (config.patch_size or vit_patch_size(data.image_size)) if config.backbone == "vit" else 1
    return config.local_size or max(step, data.image_size // 2 // step * step)


def crop_recipe(
    settings: type[CropSettings],
    build: Callable[[Any, Any], nn.Module],
    loss: str,
    *,
    blur: tuple[float, ...],
    solarize: float,
    **more: Any,
) -> Recipe:
    """The recipe of a method that learns from large and small crops. ``blur`` and ``solarize`` are those of ``MultiCrop``."""
    return image_recipe(settings, build, augment=crops(blur, solarize), arguments=crop_lists, draw=draw, loss=loss, **more)


def draw(method: Any, data: "ImageData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``attention.png`` -> its path, or None where the encoder has no class token or no image can be read."""
    from fastssl.train.attention import draw_attention

    return draw_attention(method.backbone, data, folder / "attention.png", device=device)


def crops(blur: tuple[float, ...], solarize: float) -> Callable[[CropSettings, "ImageData"], nn.Module]:
    """The augmentation of a recipe, with the shares of blurred and inverted crops of ``MultiCrop``."""

    def augment(config: CropSettings, data: "ImageData") -> nn.Module:
        from fastssl.train.multi_crop import MultiCrop

        return MultiCrop(
            data.image_size,
            local_side(config, data),
            local_crops=config.local_crops,
            global_scale=(config.min_scale, 1.0),
            local_scale=(min(config.local_min_scale, config.min_scale), config.min_scale),
            blur=blur,
            solarize=solarize,
            strength=config.jitter,
            mirror=data.mirror,
            colour=data.colour and data.channels == 3,
            hue=data.hue,
        )

    return augment


def crop_lists(module: Any, batch: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The large and the small crops of each image."""
    return module.views(batch[0])
