"""AudioMAE (Huang et al. 2022): a masked autoencoder of spectrograms, of which four fifths of the patches are removed.

    images = (LogMel(waveforms) - mean) / std,  (B, 1, mels, frames)        and from there on as ``MAE``:
    loss = mean over removed patches of mean_i (pred_i - pixel_i)^2

The patches are squares of bands x time, removed without regard to either, which the paper found best for this training. The decoder
attends to all places; the paper's has windows.
"""

import torch
from torch import Tensor, nn

from ._layers import check_encoder
from .mae import MAE


class AudioMAE(MAE):
    """AudioMAE around a vision transformer: ``AudioMAE(backbone, front_end)(waveforms)`` is the loss to call ``backward`` on.

    Huang et al. 2022, https://arxiv.org/abs/2207.06405, section 3.

    Args:
        backbone: ``fastssl.methods.VisionTransformer``, or timm's, of one channel, made for the spectrograms' size (mels, frames).
        front_end: any module from waveforms (B, S) to spectrograms (B, 1, mels, frames), such as ``LogMel``.
        mask_ratio: share of the patches that is removed.
        decoder_dim, decoder_depth, decoder_heads: width, number of blocks and heads of the decoder.
        norm_pix_loss: whether the loss compares with values normalised patch by patch.
        mean, std: of the spectrograms of the data: (spectrogram - mean) / std is what the encoder sees and the loss compares.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: a backbone that is no plain vision transformer, a ratio that removes no patch or all.

    Examples:
        >>> from fastssl.methods import LogMel, VisionTransformer
        >>> backbone = VisionTransformer(image_size=(16, 40), patch_size=8, width=8, depth=1, heads=2, channels=1)
        >>> method = AudioMAE(backbone, LogMel(rate=8000, mels=16), decoder_dim=8, decoder_depth=1, decoder_heads=2)
        >>> waveforms = torch.rand(5, 3200)
        >>> method(waveforms).shape, method.embed(waveforms).shape, method.reconstruct(waveforms)[1].shape
        (torch.Size([]), torch.Size([5, 8]), torch.Size([5, 1, 16, 40]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        front_end: nn.Module,
        *,
        mask_ratio: float = 0.8,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
    ):
        check_encoder(front_end, "AudioMAE", "front_end")
        super().__init__(
            backbone,
            mask_ratio=mask_ratio,
            decoder_dim=decoder_dim,
            decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
            norm_pix_loss=norm_pix_loss,
            pixel_mean=mean,
            pixel_std=std,
        )
        self.front_end = front_end

    def embed(self, waveforms: Tensor) -> Tensor:
        """Features of whole sounds, of which nothing is removed.

        Args:
            waveforms: (B, S), of which the front end makes spectrograms of the backbone's size.

        Returns:
            (B, D), as the backbone pools its tokens: the class token, or their mean.
        """
        return super().embed(self.front_end(waveforms))

    def forward(self, waveforms: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of sounds.

        Args:
            waveforms: (B, S), of which the front end makes spectrograms of the backbone's size.
            noise: (B, L); in each row the patches with the smallest values stay. By default ``torch.rand`` draws it.
            generator: what ``torch.rand`` draws from, instead of ``noise``.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over the removed patches.

        Raises:
            TypeError: waveforms or noise that are not floating, or of another dtype than the model's outside of autocast.
            ValueError: waveforms of a length that gives another size, noise of another shape, or both ``noise`` and ``generator``.
        """
        return super().forward(self.front_end(waveforms), noise=noise, generator=generator)

    @torch.no_grad()
    def reconstruct(
        self, waveforms: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Spectrograms for a picture of what the method paints.

        Args:
            waveforms: (B, S), as ``forward`` takes them.
            noise, generator: as of ``forward``.

        Returns:
            Three tensors: spectrograms (B, 1, mels, frames) with the removed patches 0, spectrograms with the predicted patches
            there, and the mask (B, L), 1 = removed.
        """
        return super().reconstruct(self.front_end(waveforms), noise=noise, generator=generator)
