"""Multi-format contrast (Wang and van den Oord 2021): the waveform of a sound against its spectrogram, each with an encoder.

    x_i = unit(head_w(wave_encoder(waveform_i)))        y_i = unit(head_s(spectrogram_encoder(waveform'_i)))
    loss = (InfoNCE(x, y) + InfoNCE(y, x)) / 2          l_ij = <x_i, y_j> / temperature

waveform and waveform' are two segments of one sound, or the same one. The front end is the first part of ``spectrogram_encoder``.
This is contrastive multiview coding of two views, whose loss goes both ways in one sweep.
"""

import torch
from torch import Tensor, nn

from ._common import width_of
from .cmc import CMC


def twice(waveforms: Tensor) -> tuple[Tensor, Tensor]:
    """The same waveforms for both encoders."""
    return waveforms, waveforms


class MultiFormat(CMC):
    """Multi-format contrast: ``MultiFormat(wave_encoder, spectrogram_encoder)(waveforms0, waveforms1)`` is the loss.

    Wang and van den Oord 2021, https://arxiv.org/abs/2103.06508, section 2.

    Args:
        wave_encoder: any module from waveforms (B, S) to features (B, wave_dim). It may also return maps, a mapping or a tuple:
            docs/methods.md, Encoders.
        spectrogram_encoder: any module from waveforms (B, S) to features (B, spectrogram_dim), such as ``LogMel`` and a
            convolutional network behind it.
        wave_dim, spectrogram_dim: widths of the features. By default probes find them.
        hidden_dim: width of the heads' hidden layer; by default that of the features.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: of InfoNCE, above 0.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as an encoder that is no module.
        ValueError: an argument out of its range, or an encoder whose features no rule covers.

    Examples:
        >>> method = MultiFormat(torch.nn.Linear(6, 8), torch.nn.Linear(6, 8), projection_dim=4)
        >>> waveforms = torch.rand(5, 6)
        >>> method(waveforms).shape, method.embed(waveforms).shape, method.similarity(waveforms, waveforms).shape
        (torch.Size([]), torch.Size([5, 16]), torch.Size([5, 5]))
    """

    def __init__(
        self,
        wave_encoder: nn.Module,
        spectrogram_encoder: nn.Module,
        *,
        wave_dim: int | None = None,
        spectrogram_dim: int | None = None,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        negatives: str = "global",
    ):
        name = type(self).__name__
        super().__init__(
            [wave_encoder, spectrogram_encoder],
            [
                width_of(wave_encoder, wave_dim, name, "wave_dim", "wave_encoder"),
                width_of(spectrogram_encoder, spectrogram_dim, name, "spectrogram_dim", "spectrogram_encoder"),
            ],
            hidden_dim=hidden_dim,
            projection_dim=projection_dim,
            temperature=temperature,
            split=twice,
            negatives=negatives,
        )

    def similarity(self, waveforms0: Tensor, waveforms1: Tensor) -> Tensor:
        """Cosines of the waveforms (N, S) with the spectrograms of the waveforms (N, S) -> (N, N)."""
        parts = zip(self.projection_heads, self.features((waveforms0, waveforms1)), strict=True)
        x, y = (torch.nn.functional.normalize(head(part), dim=1) for head, part in parts)
        return x @ y.T

    def forward(self, *waveforms: Tensor) -> Tensor:
        """The loss of two segments of each sound.

        Args:
            *waveforms: (B, S), what the wave encoder takes, and (B, S'), what the spectrogram encoder takes; or one for both. B is
                at least 2.

        Returns:
            Scalar float32, the mean of both directions.

        Raises:
            ValueError: more than two segments, or segments of different B or of a B below 2.
        """
        return super().forward(*(twice(waveforms[0]) if len(waveforms) == 1 else waveforms))
