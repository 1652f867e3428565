"""What the recipes of CLIP and SigLIP share: captioned crops of photographs, two encoders, scores by retrieval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from fastssl.methods import CLIP, SigLIP
from fastssl.train import UsageError
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import ImageSettings, one_view
from fastssl.train.recipes._options import OWN_DATA, PatchSize
from fastssl.train.settings import Option, data_name

if TYPE_CHECKING:
    from fastssl.train.captions import CaptionData


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(ImageSettings):
    """Of the methods that learn from images and their captions."""

    data: Annotated[
        str, Option(f"captions (of crops of the pictures of photos); pairs of your own: {OWN_DATA}", parse=data_name)
    ] = "captions"
    epochs: int = 4
    patch_size: PatchSize = None
    min_scale: float = 0.5


def load_captions(config: CaptionSettings) -> "CaptionData":
    from fastssl.train.captions import captions

    if config.data != "captions":
        raise UsageError(f"--data: {config.method} learns from captions, got '{config.data}'; pairs of your own: {OWN_DATA}")
    return captions(config.image_size or 32)


def encoders(config: CaptionSettings, data: "CaptionData") -> tuple[nn.Module, nn.Module]:
    """An image encoder by name, and a two-layer text transformer whose mean over words is the feature."""
    from fastssl.train.backbones import build_backbone
    from fastssl.train.text import MeanText, TextTransformer

    image_encoder = build_backbone(config.backbone, data.image_size, patch_size=config.patch_size)
    return image_encoder, MeanText(TextTransformer(data.vocabulary, width=64, length=32))


def pairs(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """A view of each image, one of its picture's captions, and the picture: what has its caption too is no negative."""
    images, labels = batch[:2]
    table = module.data.train_tokens.to(labels.device)
    chosen = torch.randint(table.shape[1], labels.shape, device=labels.device)
    return module.views.one(images), table[labels, chosen], labels


def image_space(method: CLIP | SigLIP) -> nn.Module:
    """The image half of a method as one module: images -> the common space."""
    return nn.Sequential(method.image_encoder, nn.Flatten(), method.image_projection)


@torch.no_grad()
def caption_scores(
    method: CLIP | SigLIP,
    data: "CaptionData",
    config: CaptionSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """Test crops against test captions.

    Returns:
        ``to_text``: the share of crops whose nearest caption is one of their picture's. ``to_image``: of the ten crops nearest to a
        caption the share that is of its picture.
    """
    from fastssl.train.evaluate import embed, evaluating

    image, label = embed(image_space(method), data.test, data.image_size, device=device, workers=workers)
    with evaluating(method):
        text = method.embed_text(data.test_tokens.flatten(0, 1).to(device)).float()
    owner = torch.arange(len(data.class_names), device=device).repeat_interleave(data.test_tokens.shape[1])
    similarity = nn.functional.normalize(image, dim=1) @ text.T
    nearest = label[similarity.topk(10, dim=0).indices]
    return {
        "to_text": (owner[similarity.argmax(1)] == label).float().mean().item(),
        "to_image": (nearest == owner).float().mean().item(),
    }


def caption_points(
    method: CLIP | SigLIP, data: "CaptionData", *, device: torch.device | str, workers: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from fastssl.train.evaluate import embed

    return *embed(image_space(method), data.test, data.image_size, device=device, workers=workers), data.class_names


def caption_recipe(settings: type[CaptionSettings], build: Callable[[Any, Any], nn.Module], loss: str) -> Recipe:
    """The recipe of a method that learns from images and their captions."""
    return Recipe(
        settings=settings,
        load=load_captions,
        build=build,
        augment=one_view,
        arguments=pairs,
        monitor=caption_scores,
        points=caption_points,
        scores={"to_text": ("acc@1", "image to caption, acc@1"), "to_image": ("P@10", "caption to image, P@10")},
        loss=loss,
        heading="test crops, test captions",
        encoder="image_encoder",
        needs_data=True,
    )
