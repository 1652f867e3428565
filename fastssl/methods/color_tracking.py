"""Tracking by colour (Vondrick et al. 2018): grey frames are painted with the colours of a reference frame, which they point at.

    f = project(backbone.forward_features(L of a frame))      A_ij = exp(f_i . f_j) / sum_k exp(f_k . f_j)         (eq. 1, 2)
    loss = mean over places j of -log sum_i A_ij [c_i = c_j]                                                       (eq. 3)

i, k are places of the encoder's maps of the reference, j of the frame to be painted; c is the class of a place's mean colour, the
nearest of some (a, b) of CIE Lab. Both frames of a clip are the reference of the other. Places whose colour the reference does not
have are left out, because no attention could find it there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_matrix

from ._checks import check_widths
from ._colour_method import lightness
from ._common import width_of
from ._encoder import features_of
from ._frames import check_clips, check_generator, frames_at
from ._image_checks import check_images
from ._lab import lab_to_rgb, rgb_to_lab
from ._maps import map_shape


class ColorTracking(nn.Module):
    """Points from grey frames to a coloured one: ``ColorTracking(backbone, colours)(clips)`` is the loss.

    Vondrick et al. 2018, https://arxiv.org/abs/1806.09594, with one reference frame in place of three.

    Args:
        backbone: a module whose ``forward_features`` goes from lightness (N, channels, H, W) to maps (N, D, h, w). Called itself,
            it gives the features of ``embed``. Its maps should be fine: the attention knows no place between theirs.
        colours: (K, 2) float, the (a, b) of the classes, such as the means of clusters; the paper has 16.
        image_size: side H = W of the frames.
        projection_dim: width in which places are compared.
        channels: channels of what the encoder sees, each of them the lightness.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone without such maps.

    Examples:
        >>> class Encoder(torch.nn.Conv2d):
        ...     def forward_features(self, images):
        ...         return torch.nn.Conv2d.forward(self, images)
        ...     def forward(self, images):
        ...         return self.forward_features(images).mean((2, 3))
        >>> method = ColorTracking(Encoder(1, 8, 2, 2), torch.tensor([[0.0, 0.0], [40.0, 20.0]]), image_size=8)
        >>> clips = torch.rand(5, 9, 3, 8, 8)
        >>> method(clips).shape, method.embed(clips[:, 0]).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    colours: Tensor

    def __init__(self, backbone: nn.Module, colours: Tensor, image_size: int = 32, *, projection_dim: int = 64, channels: int = 1):
        super().__init__()
        check_widths("ColorTracking", image_size=image_size, projection_dim=projection_dim, channels=channels)
        check_matrix("ColorTracking", "colours", colours, "K, 2")
        if colours.shape[1] != 2:
            raise ValueError(f"ColorTracking: colours must have shape (K, 2), got {tuple(colours.shape)}")
        self.feature_dim = width_of(backbone, None, "ColorTracking")
        self.shape, self.channels = (3, image_size, image_size), channels
        width, height, across = map_shape("ColorTracking", backbone, (channels, image_size, image_size))
        self.grid = (height, across)
        self.backbone: Any = backbone  # with forward_features, which no type of torch has
        self.project = nn.Conv2d(width, projection_dim, 1)
        self.register_buffer("colours", colours.detach().clone())

    def lab(self, frames: Tensor, argument: str = "images") -> Tensor:
        """RGB (N, 3, H, W), refused where they are not of the method's size, dtype and device -> Lab."""
        check_images("ColorTracking", frames, self.shape, self.project.weight, argument)
        return rgb_to_lab(frames)

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], frames or any images, of which the lightness is used.

        Returns:
            (N, feature_dim).
        """
        seen = lightness(self.lab(images), images.dtype, self.channels)
        return features_of(self.backbone, seen, self.feature_dim, "ColorTracking")

    def classes(self, lab: Tensor) -> Tensor:
        """Lab (N, 3, H, W) -> the class (N, h w) of the colour of each place."""
        ab = F.adaptive_avg_pool2d(lab[:, 1:], self.grid).flatten(2)[:, :, None]
        return (ab - self.colours.to(ab.dtype).T[:, :, None]).square().sum(1).argmin(1)

    def scores(self, lab: Tensor, dtype: torch.dtype) -> Tensor:
        """Lab (2 N, 3, H, W) of N references, then N frames -> f_i . f_j (N, h w of the reference, h w)."""
        f = self.project(self.backbone.forward_features(lightness(lab, dtype, self.channels))).flatten(2)
        reference, target = f.to(accumulator_dtype(f)).chunk(2)
        with torch.autocast(f.device.type, enabled=False):
            return reference.transpose(1, 2) @ target

    def forward(self, clips: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of clips.

        Args:
            clips: (B, T, 3, H, W) float, RGB in [0, 1], of the size that the method was made for; T is at least 2.
            generator: what draws two frames of each clip; by default torch's own.

        Returns:
            Scalar float32 (float64 for a float64 model); 0 where no place has a colour of its reference.

        Raises:
            TypeError: clips that are not floating, or of another dtype than the model's outside of autocast.
            ValueError: clips of another shape or device, or of a single frame.
        """
        check_clips("ColorTracking", clips, 2)
        check_generator("ColorTracking", generator, clips.device)
        order = torch.rand(clips.shape[:2], generator=generator, device=clips.device).argsort(1)
        lab = self.lab(frames_at(clips, order[:, :2]).transpose(0, 1).flatten(0, 1), "clips")
        scores, (first, second) = self.scores(lab, clips.dtype), self.classes(lab).chunk(2)
        same = first[:, :, None] == second[:, None]
        terms = [_surprise(scores, same), _surprise(scores.transpose(1, 2), same.transpose(1, 2))]
        return torch.stack([total for total, _ in terms]).sum() / torch.stack([count for _, count in terms]).sum().clamp_min(1)

    @torch.no_grad()
    def track(self, reference: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Colours of a frame from those of a reference.

        Args:
            reference: (N, 3, H, W) RGB in [0, 1].
            target: (N, 3, H, W), of which the lightness is used, and its colours for the classes to be found.

        Returns:
            The target's lightness in the colours that were found, RGB (N, 3, H, W); the found classes (N, h w); the true ones.
        """
        lab = self.lab(torch.cat([reference, target]))
        share = self.scores(lab, reference.dtype).softmax(1)
        known, true = self.classes(lab).chunk(2)
        found = torch.einsum("nik,nij->nkj", F.one_hot(known, len(self.colours)).to(share.dtype), share).argmax(1)
        ab = F.adaptive_avg_pool2d(lab[: len(reference), 1:], self.grid).flatten(2).to(share.dtype) @ share
        painted = F.interpolate(ab.unflatten(2, self.grid), self.shape[1:], mode="bilinear").to(lab.dtype)
        return lab_to_rgb(torch.cat([lab[len(reference) :, :1], painted], 1)), found, true


def _surprise(scores: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """scores, same (N, P, Q) -> the sum of -log sum_i softmax_i(scores) same over the places with some ``same``; their number."""
    known = same.any(1)
    own = scores.masked_fill(~(same | ~known[:, None]), -torch.inf)
    return (scores.logsumexp(1) - own.logsumexp(1)).sum(), known.sum()
