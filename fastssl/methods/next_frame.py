"""Prediction of the next frame (the future predictor of Srivastava et al. 2015, with maps in place of an LSTM's state).

    m_t = backbone.forward_features(x_t),  t = 1 .. n        x' = decoder(mix(cat(m_1, .., m_n)))
    loss = mean of (x' - x_{n+1})^2

Frames are taken from each clip, evenly spaced. Each one goes through the encoder by itself, a 1 x 1 convolution joins their maps
(N, n D, h, w), and the decoder doubles these up to the size of a frame. No connection goes around the maps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype

from ._ask import ask
from ._checks import check_batch, check_widths
from ._corruption import upsampling
from ._encoder import pooled
from ._frames import check_clips, frames_at, spaced
from ._image_checks import check_images
from ._layers import check_encoder
from ._maps import map_shape


class NextFrame(nn.Module):
    """Paints the frame that comes next: ``NextFrame(backbone)(clips)`` is the loss to call ``backward`` on.

    Srivastava et al. 2015, https://arxiv.org/abs/1502.04681, section 2.3: the loss is their squared error of the pixels.

    Args:
        backbone: a module whose ``forward_features`` goes from images (N, C, H, W) to maps (N, D, h, w), H / h = W / w a power of
            2, such as timm's convolutional models. Called itself, it gives the features (N, D') of ``embed``.
        image_size: side H = W of the frames.
        given: frames n that are seen.
        channels: number C of channels.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone without such maps.

    Examples:
        >>> class Encoder(torch.nn.Conv2d):
        ...     def forward_features(self, images):
        ...         return torch.nn.Conv2d.forward(self, images)
        ...     def forward(self, images):
        ...         return self.forward_features(images).mean((2, 3))
        >>> method = NextFrame(Encoder(3, 8, 2, 2), image_size=8)
        >>> clips = torch.rand(5, 9, 3, 8, 8)
        >>> method(clips).shape, method.embed(clips[:, 0]).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(self, backbone: nn.Module, image_size: int = 32, *, given: int = 4, channels: int = 3):
        super().__init__()
        check_encoder(backbone, "NextFrame")
        check_widths("NextFrame", image_size=image_size, given=given, channels=channels)
        self.given, self.shape = given, (channels, image_size, image_size)
        self.backbone: Any = backbone  # with forward_features, which no type of torch has
        width, height, _ = map_shape("NextFrame", backbone, self.shape)
        self.mix = nn.Sequential(nn.Conv2d(given * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.decoder = upsampling(width, height, image_size, channels)

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone.

        Args:
            images: (N, C, H, W) float, frames or any images.

        Returns:
            (N, D').
        """
        check_batch("NextFrame", 1, images=images)
        return pooled(ask(self.backbone, "NextFrame: the backbone", "images", images), len(images), "NextFrame")

    def predict(self, seen: Tensor) -> Tensor:
        """The frame that comes after others.

        Args:
            seen: (B, given, C, H, W).

        Returns:
            (B, C, H, W).
        """
        maps = self.backbone.forward_features(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        return self.decoder(self.mix(maps.flatten(1, 2)))

    def take(self, clips: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The frames that are seen and the one that comes next.

        Args:
            clips: (B, T, C, H, W), T above ``given``. In evaluation the frames are the middle ones.
            generator: what draws the first frame of each clip in training; by default torch's own.

        Returns:
            (B, given, C, H, W) and (B, C, H, W).
        """
        check_clips("NextFrame", clips, self.given + 1)
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        check_images("NextFrame", clips.flatten(0, 1), self.shape, last.weight, "clips")
        times = spaced("NextFrame", clips, self.given + 1, random=self.training, generator=generator)
        frames = frames_at(clips, times)
        return frames[:, :-1], frames[:, -1]

    def forward(self, clips: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of clips.

        Args:
            clips: (B, T, C, H, W) float, T above ``given``, of the size and channels that the method was made for.
            generator: what draws the first frame of each clip in training; by default torch's own.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean squared error of the pixels.

        Raises:
            TypeError: clips that are not floating, or of another dtype than the model's outside of autocast.
            ValueError: clips of another shape or device, or too short.
        """
        seen, target = self.take(clips, generator)
        painted = self.predict(seen)
        wide = accumulator_dtype(painted)
        return F.mse_loss(painted.to(wide), target.to(wide))
