"""How ``fastssl train audio_mae`` runs a masked autoencoder of spectrograms."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from fastssl.methods import AudioMAE, LogMel, VisionTransformer
from fastssl.train import UsageError
from fastssl.train.recipes._images import WATCH
from fastssl.train.recipes._masked import refused_in_options
from fastssl.train.recipes._options import MaskRatio
from fastssl.train.recipes._sounds import BANDS, SoundSettings, sound_recipe, sound_scores
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.sounds import SoundData

PATCH = 8  # bands, and columns
MEAN, STD = -4.7, 2.9  # of the logarithms of ``speech``


@dataclass(frozen=True, kw_only=True)
class AudioMAESettings(SoundSettings):
    method: str = "audio_mae"
    backbone: str = "vit"  # the only one there is
    epochs: int = 12
    batch_size: int = 32
    lr: LearningRate = 1.5e-3
    knn_every: int = 4
    mask_ratio: MaskRatio = 0.6
    decoder_dim: Annotated[int, Option("width of the decoder, a multiple of 4", least=4)] = 64
    decoder_depth: Annotated[int, Option("blocks of the decoder", least=0)] = 2


def build(config: AudioMAESettings, data: "SoundData") -> AudioMAE:
    front_end = LogMel(data.rate, BANDS)
    columns = data.samples // front_end.hop
    if columns % PATCH or not columns:
        raise UsageError(f"--seconds {config.seconds}: must make a multiple of {PATCH} columns of 0.01 s, makes {columns}")
    encoder = VisionTransformer((BANDS, columns), PATCH, channels=1, positions="sine")
    return refused_in_options(
        AudioMAE,
        encoder,
        front_end,
        mask_ratio=config.mask_ratio,
        decoder_dim=config.decoder_dim,
        decoder_depth=config.decoder_depth,
        decoder_heads=4,
        mean=MEAN,
        std=STD,
    )


def scores(
    method: AudioMAE,
    data: "SoundData",
    config: AudioMAESettings,
    *,
    device: torch.device | str,
    workers: int,
    most: int | None,
    full: bool,
) -> dict[str, float]:
    """``sound_scores`` and the errors of ``spectrogram_errors`` on test sounds."""
    from fastssl.train.spectrograms import spectrogram_errors

    found = sound_scores(method, data, config, device=device, workers=workers, most=most, full=full)
    return found | spectrogram_errors(method, data, device=device, workers=workers, most=most)


def draw(method: AudioMAE, data: "SoundData", folder: Path, *, device: torch.device | str) -> Path | None:
    """Draws ``spectrograms.png`` -> its path, or None where no sound can be read."""
    from fastssl.train.spectrograms import draw_spectrograms

    return draw_spectrograms(method, data, folder / "spectrograms.png", device=device)


RECIPE = sound_recipe(
    AudioMAESettings,
    build,
    monitor=scores,
    watch={
        **WATCH,
        "error": ("error", "squared error of removed", ".3f"),
        "fill": ("fill", "the same, mean of neighbours", ".3f"),
    },
    draw=draw,
    loss="MAE",
)
