"""How ``fastssl train wav2vec2`` runs wav2vec 2.0, scored by the words and by the hidden frames whose target it finds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch

from fastssl.methods import FrameEncoder, Wav2Vec2
from fastssl.train import UsageError
from fastssl.train.recipes._images import WATCH
from fastssl.train.recipes._options import Temperature
from fastssl.train.recipes._sounds import SoundSettings, sound_recipe, sound_scores
from fastssl.train.settings import LearningRate, Option

if TYPE_CHECKING:
    from fastssl.train.sounds import SoundData


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Settings(SoundSettings):
    method: str = "wav2vec2"
    epochs: int = 6
    batch_size: int = 16
    lr: LearningRate = 2e-3
    temperature: Temperature = 0.1
    entries: Annotated[int, Option("codes in each of the two groups of the quantiser", least=2)] = 40
    span: Annotated[int, Option("frames of 10 ms of a hidden span", least=1)] = 8
    diversity_weight: Annotated[float, Option("weight of the term that asks for all codes to be used", least=0)] = 0.5
    sampled_negatives: Annotated[int, Option("hidden frames that each one is compared with", least=1)] = 100


def build(config: Wav2Vec2Settings, data: "SoundData") -> Wav2Vec2:
    """About half of the frames are hidden. The noise of the codes cools down within the training."""
    steps = max(1, config.epochs * (len(data.train) // config.batch_size))
    encoder = FrameEncoder()
    frames = data.samples // encoder.hop
    if config.span > frames:
        raise UsageError(f"--span {config.span}: --seconds {config.seconds:g} holds only {frames} frames of {encoder.hop} samples")
    return Wav2Vec2(
        encoder,
        encoder.frame_dim,
        width=96,
        depth=2,
        codes=(2, config.entries),
        gumbel=(1.0, 0.25, 0.25 ** (1.0 / steps)),
        spans=(0.65 / config.span, config.span),
        num_negatives=config.sampled_negatives,
        temperature=config.temperature,
        diversity_weight=config.diversity_weight,
    )


@torch.no_grad()
def found_frames(
    method: Wav2Vec2, data: "SoundData", *, device: torch.device | str, workers: int, most: int | None
) -> dict[str, float]:
    """Hidden frames of the test sounds; the same frames are hidden each time.

    Returns:
        ``found``: the share of frames whose target is nearer to the prediction than the negatives. Where n negatives have the
        target's code, a frame counts as 1 / (1 + n), so that one code for all gives what chance gives. ``codes``: the perplexity
        of the quantiser, from 2 to twice the entries.
    """
    from fastssl.train.data import batches, limited
    from fastssl.train.evaluate import evaluating

    right, total, used = 0.0, 0, []
    generator = torch.Generator(device).manual_seed(0)
    with evaluating(method):
        for waveforms, *_ in batches(data.test if most is None else limited(data.test, most), 64, workers=workers):
            query, keys, negatives, perplexity = method.task(waveforms.to(device), generator)
            cosines = torch.cosine_similarity(query[:, None], keys[negatives], dim=2)
            same = (keys[negatives] == keys[:, None]).all(2)
            own = torch.cosine_similarity(query, keys, dim=1)
            nearest = (own[:, None] > cosines).logical_or(same).all(1)
            right += (nearest / (1.0 + same.sum(1))).sum().item()
            total += len(query)
            used.append(perplexity.item())
    return {"found": right / total, "codes": sum(used) / len(used)} if total else {}


def scores(method: Wav2Vec2, data: "SoundData", config: Wav2Vec2Settings, **how: Any) -> dict[str, float]:
    """``sound_scores`` and ``found_frames``."""
    full = how.pop("full")
    return sound_scores(method, data, config, **how, full=full) | found_frames(method, data, **how)


RECIPE = sound_recipe(
    Wav2Vec2Settings,
    build,
    monitor=scores,
    watch={"found": ("found", "hidden frames found", ".3f"), "codes": ("codes", "codes in use", ".1f")} | WATCH,
    loss="InfoNCE over sampled negatives",
    negatives="hidden frames of the same sound",
)
