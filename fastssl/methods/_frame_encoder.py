"""Strided convolutions over a waveform, the front of methods that learn from sound as it is."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from ._checks import check_widths


class FrameEncoder(nn.Module):
    """waveforms (B, S) -> frames (B, T, width), one for each ``hop`` samples: convolutions, each with a norm and a GELU.

    As the feature encoder of wav2vec 2.0 (Baevski et al. 2020, section 2) with fewer layers: each convolution has a kernel of twice
    its stride, and the first one is followed by a norm over time for each channel, which makes the loudness of a sound not matter.

    Args:
        width: channels F of every layer.
        strides: of the layers; their product is ``hop``. At 8,000 samples a second the default of 80 is a frame for 10 ms.

    Raises:
        TypeError, ValueError: a width or a stride that is no whole number of at least 1, no stride at all.

    Examples:
        >>> FrameEncoder(width=8)(torch.randn(2, 1600)).shape
        torch.Size([2, 20, 8])
    """

    def __init__(self, width: int = 64, strides: Sequence[int] = (5, 4, 2, 2)):
        super().__init__()
        if not isinstance(strides, tuple | list) or not strides:
            raise ValueError(f"FrameEncoder: strides must be whole numbers of at least 1, at least one of them, got {strides}")
        check_widths("FrameEncoder", width=width, **{f"strides[{i}]": stride for i, stride in enumerate(strides)})
        self.frame_dim, self.hop = width, prod(strides)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers.append(nn.Conv1d(width if i else 1, width, 2 * stride, stride, padding=(stride + 1) // 2, bias=False))
            layers += [nn.GroupNorm(1 if i else width, width), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, waveforms: Tensor) -> Tensor:
        """waveforms (B, S), S at least 2 ``hop`` -> frames (B, T, width)."""
        return self.layers(waveforms[:, None]).transpose(1, 2)
