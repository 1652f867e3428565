"""How ``fastssl train track_triplets`` learns from patches that are followed through a clip by its known camera path."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from fastssl.methods import TrackTriplets
from fastssl.train.recipes._clips import ClipSettings, clip_recipe, found_among
from fastssl.train.recipes._options import HiddenDim, ProjectionDim
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.clips import ClipData


@dataclass(frozen=True, kw_only=True)
class TrackTripletsSettings(ClipSettings):
    method: str = "track_triplets"
    epochs: int = 12
    knn_every: int = 4
    lr: LearningRate = 2e-3
    margin: Annotated[float, Option("by how much a track's own patch must be nearer than others, in 1 - cosine", above=0)] = 0.5
    mining: Annotated[
        str,
        Option("the negative is the nearest patch of another track (hard), or each of them (all)", choices=("hard", "all")),
    ] = "hard"
    hidden_dim: HiddenDim = None
    projection_dim: ProjectionDim = 128


def build(config: TrackTripletsSettings, data: "ClipData") -> TrackTriplets:
    """Patches have half the side of a frame; the photographs of the scores are whole."""
    from fastssl.train.backbones import build_backbone

    encoder = build_backbone(config.backbone, data.image_size, patch_size=config.patch_size, all_sizes=True)
    return TrackTriplets(
        encoder, margin=config.margin, mining=config.mining, hidden_dim=config.hidden_dim, projection_dim=config.projection_dim
    )


def tracks(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The same place in two frames of each clip, at least half of the clip apart; half of the pairs are mirrored."""
    from fastssl.train.clips import track_patches

    clips, _, _, paths = batch
    count, frames = clips.shape[:2]
    draws = torch.rand(3, count, device=clips.device)
    apart = frames // 2 + (draws[0] * (frames - frames // 2)).long()
    first = (draws[1] * (frames - apart)).long()
    patches = track_patches(clips, paths, torch.stack([first, first + apart], 1), module.data.image_size // 2)
    flipped = (draws[2] < 0.5).view(-1, 1, 1, 1, 1) & module.data.mirror
    view0, view1 = torch.where(flipped, patches.flip(-1), patches).unbind(1)
    return view0.contiguous(), view1.contiguous()


def found(method: TrackTriplets, clips: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
    """``found``: the share of test tracks whose last patch is nearest to their first one, among the last patches of all."""
    from fastssl.train.clips import track_patches

    rows = []
    for frames, _, _, paths in clips:
        ends = torch.tensor([[0, frames.shape[1] - 1]], device=frames.device).expand(len(frames), -1)
        patches = track_patches(frames, paths, ends, frames.shape[-1] // 2)
        rows.append(method.project(patches.flatten(0, 1)).unflatten(0, (-1, 2)))
    return found_among(rows)


RECIPE = clip_recipe(
    TrackTripletsSettings,
    build,
    found,
    {"found": ("found", "ends of tracks found", ".3f")},
    arguments=tracks,
    augment=lambda config, data: None,
    loss="triplet",
)
