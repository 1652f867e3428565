"""What the recipes of sound share: settings, data, random segments, the encoders, and scores on ``method.embed(waveforms)``.

The scores are a weighted kNN and a linear probe of the class, on ``speech`` the word, of test sounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from fastssl.methods import LogMel
from fastssl.train.recipe import Recipe
from fastssl.train.recipes._images import SCORES, WATCH, scores_of_features
from fastssl.train.settings import Option, TrainConfig, data_name

if TYPE_CHECKING:
    from fastssl.train.sounds import SoundData

BANDS = 40  # of the spectrograms
AMONG = 64  # test sounds among which a segment's other one is looked for


@dataclass(frozen=True, kw_only=True)
class SoundSettings(TrainConfig):
    """Of every method that learns from sound."""

    data: Annotated[str, Option("speech (synthesised words), or folder:PATH (sound files)", parse=data_name)] = "speech"
    backbone: str = "conv"  # the only one there is
    rate: Annotated[int, Option("samples a second", least=4000, most=384_000)] = 8000
    seconds: Annotated[float, Option("length of the sounds: their middle, or the whole between silence", least=0.4, most=3600)] = (
        0.8
    )
    batch_size: int = 64
    knn_k: Annotated[int, Option("neighbours that vote", least=1)] = 20
    knn_t: Annotated[float, Option("temperature of the kNN vote", above=0)] = 0.1


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(SoundSettings):
    """Of the methods that contrast two segments of a sound."""

    segment: Annotated[float, Option("length of a segment as a share of a sound", least=0.25, most=1)] = 0.6


def load_sound(config: SoundSettings) -> "SoundData":
    from fastssl.train.sounds import load_sounds

    return load_sounds(config.data, config.rate, config.seconds)


def no_views(config: Any, data: Any) -> None:
    """The method takes whole sounds."""


def whole_sounds(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (batch[0],)


class Segments(nn.Module):
    """Two random segments of each sound."""

    def __init__(self, samples: int):
        super().__init__()
        self.samples = samples

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        from fastssl.train.sounds import random_segments

        return random_segments(waveforms, self.samples), random_segments(waveforms, self.samples)


def two_segments(config: "SegmentSettings", data: "SoundData") -> Segments:
    return Segments(segment_samples(config, data))


def segment_samples(config: "SegmentSettings", data: "SoundData") -> int:
    return max(1, round(config.segment * data.samples))


def segment_pair(module: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two segments of each sound."""
    return module.views(batch[0])


def spectrogram_encoder(rate: int) -> nn.Module:
    """The convolutional encoder behind a spectrogram: waveforms (B, S) -> (B, 256)."""
    from fastssl.train.backbones import ConvEncoder

    return nn.Sequential(LogMel(rate, BANDS), ConvEncoder(channels=1))


@torch.no_grad()
def found_pairs(
    method: Any, data: "SoundData", config: "SegmentSettings", *, device: torch.device | str, workers: int, most: int | None
) -> dict[str, float]:
    """Of test sounds the share whose first segment is most similar to their own last segment, among ``AMONG`` of them.

    The sounds of a group are of many classes and voices, the same ones each time.
    """
    from fastssl.train.data import batches, limited
    from fastssl.train.evaluate import evaluating

    if len(data.test) < 2:
        return {}
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0)).tolist()
    half, length = Subset(limited(data.test, len(data.test)), chosen[:most]), segment_samples(config, data)
    found, total = 0, 0
    with evaluating(method):
        for waveforms, *_ in batches(half, AMONG, workers=workers, drop_last=len(half) > AMONG):
            waveforms = waveforms.to(device)
            best = method.similarity(waveforms[:, :length], waveforms[:, -length:]).argmax(1)
            found += int((best == torch.arange(len(best), device=best.device)).sum())
            total += len(best)
    return {"pairs": found / total} if total else {}


def segment_scores(method: nn.Module, data: "SoundData", config: "SegmentSettings", **how: Any) -> dict[str, float]:
    """``sound_scores`` and ``found_pairs``."""
    full = how.pop("full")
    return sound_scores(method, data, config, **how, full=full) | found_pairs(method, data, config, **how)


def sound_scores(
    method: nn.Module,
    data: "SoundData",
    config: SoundSettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """The accuracy of a kNN vote on test sounds, with ``full`` also that of a linear probe, and the collapse watch."""
    from fastssl.train.data import limited

    halves = [half if most is None else limited(half, most) for half in (data.train, data.test) if len(half)]
    kept = halves if data.labelled else halves[-1:]
    return scores_of_features([embed_sounds(method, half, device=device, workers=workers) for half in kept], data, config, full)


def embed_sounds(method: nn.Module, half: Any, *, device: torch.device | str, workers: int) -> tuple[Tensor, Tensor]:
    """features (N, D) and labels (N,) of the sounds of a half."""
    from fastssl.train.evaluate import embed_all

    return embed_all(method, half, lambda waveforms: waveforms, "sounds", device=device, workers=workers)


def sound_points(
    method: nn.Module, data: "SoundData", *, device: torch.device | str, workers: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """features (N, D), labels (N,) of the test sounds (of the training sounds where there are none), and the class names."""
    half = data.test if len(data.test) else data.train
    return *embed_sounds(method, half, device=device, workers=workers), data.class_names


def sound_recipe(settings: type[SoundSettings], build: Callable[[Any, Any], nn.Module], **more: Any) -> Recipe:
    """The recipe of a method that learns from whole sounds. ``more`` holds the fields of ``Recipe`` that differ."""
    usual: dict[str, Any] = {
        "load": load_sound,
        "augment": no_views,
        "arguments": whole_sounds,
        "monitor": sound_scores,
        "points": sound_points,
        "scores": SCORES,
        "watch": WATCH,
        "heading": "accuracy on test sounds",
        "unit": "sounds",
        "unscored": "kNN and linear probe left out: they need test sounds, and two classes with sounds that can be read",
    }
    return Recipe(settings=settings, build=build, **(usual | more))


def segment_recipe(settings: type[SegmentSettings], build: Callable[[Any, Any], nn.Module], loss: str) -> Recipe:
    """The recipe of a method that contrasts two segments of a sound."""
    return sound_recipe(
        settings,
        build,
        augment=two_segments,
        arguments=segment_pair,
        monitor=segment_scores,
        watch={**WATCH, "pairs": ("pairs", "other segment found among 64", ".3f")},
        loss=loss,
    )
