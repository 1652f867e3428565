"""How ``fastssl train cpc_sound`` runs contrastive predictive coding of waveforms, read from left to right in parts."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastssl.methods import CPC
from fastssl.train.recipes._images import WATCH
from fastssl.train.recipes._options import Negatives, ProjectionDim, Temperature
from fastssl.train.recipes._sounds import SoundSettings, sound_recipe, sound_scores
from fastssl.train.settings import LearningRate

if TYPE_CHECKING:
    from fastssl.train.sounds import SoundData

PART = 0.02  # seconds of a part
STEPS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class CPCSoundSettings(SoundSettings):
    method: str = "cpc_sound"
    epochs: int = 6
    batch_size: int = 32
    lr: LearningRate = 2e-3
    temperature: Temperature = 0.1
    negatives: Negatives = "global"
    projection_dim: ProjectionDim = 128


def parts(waveforms: Tensor, rate: int) -> Tensor:
    """Waveforms (B, S) -> parts (B, T, 1, samples), of which each begins where the one before ends."""
    samples = round(PART * rate)
    return waveforms.unfold(1, samples, samples)[:, :, None]


def build(config: CPCSoundSettings, data: "SoundData") -> CPC:
    """The encoder sees one part at a time."""
    from fastssl.train.backbones import WaveEncoder

    return CPC(
        WaveEncoder((32, 64, 128), (10, 8, 4)),
        128,
        steps=STEPS,
        split=partial(parts, rate=data.rate),
        projection_dim=config.projection_dim,
        temperature=config.temperature,
        negatives=config.negatives,
    )


@torch.no_grad()
def found_parts(method: CPC, data: "SoundData", *, device: torch.device | str, workers: int, most: int | None) -> dict[str, float]:
    """Of the parts of test sounds the share that is predicted one step before, among all parts of 64 sounds."""
    from fastssl.train.data import batches, limited
    from fastssl.train.evaluate import evaluating

    found, total, step = 0, 0, STEPS[0]
    with evaluating(method):
        for waveforms, *_ in batches(data.test if most is None else limited(data.test, most), 64, workers=workers):
            z = method.encode(waveforms.to(device))
            rows = method.predictions[0](method.context(z)[0][:, :-step]).flatten(0, 1)
            keys = torch.nn.functional.normalize(method.target(z)[:, step:].flatten(0, 1), dim=1)
            found += int(((rows @ keys.T).argmax(1) == torch.arange(len(rows), device=rows.device)).sum())
            total += len(rows)
    return {"found": found / total} if total else {}


def scores(method: CPC, data: "SoundData", config: CPCSoundSettings, **how: Any) -> dict[str, float]:
    """``sound_scores`` and ``found_parts``."""
    full = how.pop("full")
    return sound_scores(method, data, config, **how, full=full) | found_parts(method, data, **how)


RECIPE = sound_recipe(
    CPCSoundSettings,
    build,
    monitor=scores,
    watch={**WATCH, "found": ("found", "next part found, among 64 sounds", ".3f")},
    loss="InfoNCE",
)
