"""The front end of methods that look at sound: the logarithm of its power in bands of equal width in mel.

    X[k, t] = sum_n w[n] x[t h + n - N / 2] exp(-2 pi i k n / N)           h the hop, w Hann's window in the middle of N samples
    out[m, t] = log(sum_k F[m, k] |X[k, t]|^2 + floor)                     F[m, .] a triangle over the mel scale, 1 at its top

mel(f) = 2595 log10(1 + f / 700), the formula of HTK, with its triangles, which are not scaled by their width.
"""

import math

import torch
from torch import Tensor, nn

from fastssl.checks import check_dense, check_number

from ._checks import check_positive, check_widths


def mel_of(hertz: Tensor) -> Tensor:
    """Hz -> mel by HTK's formula."""
    return 2595.0 * torch.log10(1.0 + hertz / 700.0)


def mel_filters(mels: int, bins: int, rate: int, low: float, high: float) -> Tensor:
    """(mels, bins) float64: triangles over bins of 0 to ``rate / 2`` Hz, whose corners divide ``low`` to ``high`` evenly in mel."""
    ends = mel_of(torch.tensor([low, high], dtype=torch.float64))
    corners = ends[0] + (ends[1] - ends[0]) * torch.arange(mels + 2, dtype=torch.float64) / (mels + 1)
    place = mel_of(torch.arange(bins, dtype=torch.float64) * (rate / 2 / (bins - 1)))
    left, top, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return torch.minimum((place - left) / (top - left), (right - place) / (right - top)).clamp_min(0.0)


class LogMel(nn.Module):
    """Log-mel spectrograms of waveforms: (B, S) -> (B, 1, mels, S // hop), an image of one channel with time to the right.

    Args:
        rate: samples a second of the waveforms.
        mels: number of bands.
        window: length of Hann's window in seconds. The Fourier transform is over the next power of 2 of samples.
        hop: seconds from one column to the next; column t is about the time t ``hop``.
        low, high: ends of the lowest and the highest band in Hz; ``high`` is by default half of ``rate``.
        floor: what is added to the power before the logarithm, so that silence is finite.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or so many bands that one of them holds no bin of the transform.

    Examples:
        >>> front_end = LogMel(rate=8000, mels=40)
        >>> front_end(torch.rand(5, 6400)).shape
        torch.Size([5, 1, 40, 80])
    """

    def __init__(
        self,
        rate: int = 16000,
        mels: int = 64,
        *,
        window: float = 0.025,
        hop: float = 0.01,
        low: float = 60.0,
        high: float | None = None,
        floor: float = 1e-5,
    ):
        super().__init__()
        check_widths("LogMel", rate=rate, mels=mels)
        check_positive("LogMel", window=window, hop=hop, floor=floor)
        high = rate / 2 if high is None else high
        check_number("LogMel", "low", low, 0.0, rate / 2)
        check_positive("LogMel", high=high)
        self.rate, self.mels, self.hop, self.floor = rate, mels, round(hop * rate), floor
        length = round(window * rate)
        if self.hop < 1 or length < 2:
            raise ValueError(f"LogMel: hop must be at least 1 sample and window at least 2, got {self.hop} and {length}")
        if not low < high <= rate / 2:
            raise ValueError(f"LogMel: high must be above low {low} and at most half of the rate {rate}, got {high}")
        self.size = 2 ** math.ceil(math.log2(length))
        filters = mel_filters(mels, self.size // 2 + 1, rate, low, high)
        if not (filters.sum(1) > 0).all():
            most = f"{rate} samples a second and a window of {window} s"
            raise ValueError(f"LogMel: mels must be so few that each holds a bin of the transform, got {mels} for {most}")
        self.filters: Tensor
        self.window: Tensor
        self.register_buffer("filters", filters.float(), persistent=False)
        self.register_buffer("window", torch.hann_window(length), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """The spectrograms of waveforms.

        Args:
            waveforms: (B, S) floating, S above half of the transform's size and at least one hop.

        Returns:
            (B, 1, mels, S // hop) of the waveforms' dtype. All is computed in float32 at least, under autocast too.

        Raises:
            TypeError: waveforms that are not floating.
            ValueError: waveforms of another shape, or too short.
        """
        check_dense("LogMel", "waveforms", waveforms, "a tensor (B, S)")
        least = max(self.size // 2 + 1, self.hop)
        if waveforms.ndim != 2 or len(waveforms) == 0 or waveforms.shape[1] < least:
            raise ValueError(f"LogMel: waveforms must have shape (B, S) with S of at least {least}, got {tuple(waveforms.shape)}")
        if not waveforms.is_floating_point():
            raise TypeError(f"LogMel: waveforms must be floating, got {waveforms.dtype}")
        with torch.autocast(waveforms.device.type, enabled=False):
            x = waveforms if waveforms.dtype == torch.float64 else waveforms.float()
            window, filters = self.window.to(x.dtype), self.filters.to(x.dtype)
            bins = torch.stft(x, self.size, self.hop, len(window), window, pad_mode="reflect", return_complex=True)
            power = bins[..., : x.shape[1] // self.hop].abs().square()
            return (filters @ power + self.floor).log()[:, None].to(waveforms.dtype)
