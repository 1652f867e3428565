"""wav2vec 2.0 (Baevski et al. 2020): from what is heard around a hidden stretch of sound, tell what was said there.

    z = encoder(x)  (B, T, F)      c = context(z with spans replaced by a learned vector)      q = quantise(z), hidden frames alone
    loss = mean over hidden frames i of -log exp(cos(W c_i, q_i) / t) / sum_j exp(cos(W c_i, q_j) / t)                 (eq. 3)
           + weight (1 - perplexity / (G V))                                                      in place of eq. 4, as in fairseq

j runs over q_i and ``num_negatives`` targets of other hidden frames of the same sound; those with the code of i are left out.
"""

from typing import cast

import torch
from torch import Tensor, nn

from fastssl.checks import check_dense, check_number, check_whole
from fastssl.functional import sampled_info_nce, span_mask

from ._block import Block, check_heads, init_linear
from ._checks import check_positive, check_widths, given
from ._frame_encoder import FrameEncoder
from ._layers import check_encoder
from ._quantizer import GumbelQuantizer
from ._recompute import once

KERNEL = 15  # frames that the convolution sees which tells the context where a frame stands


class Wav2Vec2(nn.Module):
    """wav2vec 2.0 around an encoder of waveforms: ``Wav2Vec2()(waveforms)`` is the loss to call ``backward`` on.

    Baevski et al. 2020, https://arxiv.org/abs/2006.11477, sections 2 and 3.

    Args:
        encoder: a module from waveforms (B, S) to frames (B, T, frame_dim). None: ``FrameEncoder(frame_dim)``.
        frame_dim: width F of the frames, 64 without an encoder; it must be given with one.
        width, depth, heads: width, number of blocks and heads of the transformer that makes contexts of frames.
        codes: (G, V), groups of the quantiser and entries of each.
        gumbel: (start, end, decay) of the temperature of the quantiser's noise, max(end, start decay^step).
        spans: (p, S): the share of the frames at which a hidden span starts, and how many frames it has; see ``span_mask``.
        num_negatives: how many other hidden frames of the same sound each one is compared with; they may come twice.
        temperature: t, above 0.
        diversity_weight: weight of the term that asks for all codes to be used.

    Raises:
        TypeError: an argument of the wrong type, such as an encoder that is no module.
        ValueError: an argument out of its range, an encoder without ``frame_dim``, a width that is no multiple of ``heads``.

    Examples:
        >>> method = Wav2Vec2(frame_dim=8, width=8, depth=1, heads=2, codes=(2, 4), spans=(0.2, 3))
        >>> waveforms = torch.randn(3, 1600)
        >>> method(waveforms).shape, method.embed(waveforms).shape
        (torch.Size([]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        frame_dim: int | None = None,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        codes: tuple[int, int] = (2, 320),
        gumbel: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        spans: tuple[float, int] = (0.065, 10),
        num_negatives: int = 100,
        temperature: float = 0.1,
        diversity_weight: float = 0.1,
    ):
        super().__init__()
        for argument, value, count in (("codes", codes, 2), ("gumbel", gumbel, 3), ("spans", spans, 2)):
            if not isinstance(value, tuple | list) or len(value) != count:
                raise ValueError(f"Wav2Vec2: {argument} must be {count} numbers, got {value}")
        check_widths("Wav2Vec2", width=width, depth=depth, heads=heads, num_negatives=num_negatives, **given(frame_dim=frame_dim))
        check_widths("Wav2Vec2", **{"codes[0]": codes[0], "codes[1]": codes[1], "spans[1]": spans[1]})
        check_heads("Wav2Vec2", "width", width, "heads", heads)
        check_positive("Wav2Vec2", temperature=temperature, **{f"gumbel[{i}]": value for i, value in enumerate(gumbel)})
        check_number("Wav2Vec2", "diversity_weight", diversity_weight, 0.0)
        check_number("Wav2Vec2", "spans[0]", spans[0], 0.0, 1.0)
        if encoder is not None:
            check_encoder(encoder, "Wav2Vec2", "encoder")
            if frame_dim is None:
                raise ValueError("Wav2Vec2: frame_dim must be the width of the encoder's frames, got None")
        self.frame_dim = 64 if frame_dim is None else check_whole("Wav2Vec2", "frame_dim", frame_dim, 1)
        self.feature_dim, self.probability, self.span, self.num_negatives = width, *spans, num_negatives
        self.temperature, self.diversity_weight = temperature, diversity_weight
        self.encoder = FrameEncoder(self.frame_dim) if encoder is None else encoder
        self.norm_frames, self.widen = nn.LayerNorm(self.frame_dim), nn.Linear(self.frame_dim, width)
        self.hidden = nn.Parameter(torch.empty(width).uniform_())
        self.places = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=heads)
        self.norm_pre, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.project = nn.Linear(width, width)
        self.blocks.apply(init_linear)
        self.quantizer = GumbelQuantizer(self.frame_dim, width, *codes, cast("tuple[float, float, float]", tuple(gumbel)))

    def frames(self, waveforms: Tensor) -> Tensor:
        """waveforms (B, S) -> normalised frames (B, T, frame_dim)."""
        check_dense("Wav2Vec2", "waveforms", waveforms)
        if waveforms.ndim != 2 or 0 in waveforms.shape or not waveforms.is_floating_point():
            raise ValueError(f"Wav2Vec2: waveforms must be float (B, S), got {waveforms.dtype} {tuple(waveforms.shape)}")
        z = self.encoder(waveforms)
        if not isinstance(z, Tensor) or z.ndim != 3 or (len(z), z.shape[2]) != (len(waveforms), self.frame_dim):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"Wav2Vec2: the encoder must return ({len(waveforms)}, T, {self.frame_dim}), got {got}")
        if z.shape[1] < self.span:
            raise ValueError(f"Wav2Vec2: waveforms must give at least {self.span} frames (spans), got {z.shape[1]}")
        return self.norm_frames(z)

    def context(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames (B, T, frame_dim), mask (B, T) bool, True = hidden -> contexts (B, T, width)."""
        x = self.widen(z)
        if mask is not None:
            x = torch.where(mask[:, :, None], self.hidden.to(x.dtype), x)
        x = self.norm_pre(x + nn.functional.gelu(self.places(x.transpose(1, 2))).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, waveforms: Tensor) -> Tensor:
        """waveforms (B, S) -> features (B, width), the mean over the contexts with nothing hidden."""
        return self.context(self.frames(waveforms)).mean(1)

    def task(self, waveforms: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the loss compares: predictions and targets (M, width) of the hidden frames, negatives (M, J), perplexity ()."""
        z = self.frames(waveforms)
        mask = span_mask(
            *z.shape[:2], probability=self.probability, span=self.span, min_masks=1, generator=generator, device=z.device
        )
        heat = once(self, waveforms, self.quantizer.advance if self.training else self.quantizer.temperature)
        targets, perplexity = self.quantizer(z[mask], heat, generator)
        hidden = mask.sum(1)
        count, first = (each.repeat_interleave(hidden) for each in (hidden, hidden.cumsum(0) - hidden))  # of the own sound (M,)
        own = torch.arange(len(count), device=z.device)
        step = torch.rand(len(count), self.num_negatives, device=z.device, generator=generator) * (count[:, None] - 1)
        negatives = first[:, None] + ((own - first)[:, None] + 1 + step.long()) % count[:, None]
        return self.project(self.context(z, mask)[mask]), targets, negatives, perplexity

    def forward(self, waveforms: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """waveforms (B, S) float, B at least 1 -> the loss, a scalar float32. ``generator`` draws spans, codes and negatives."""
        query, keys, negatives, perplexity = self.task(waveforms, generator)
        own = torch.arange(len(query), device=query.device)
        loss = sampled_info_nce(query, keys, own, negatives, temperature=self.temperature)
        return loss + self.diversity_weight * (1.0 - perplexity / self.quantizer.logits.out_features)
