"""Relative position (Doersch et al. 2015): of two patches of an image, the network says on which of 8 sides the second one lies.

    f_i = backbone(patch_i)        logits = head(f_0, f_1)        loss = mean of -log softmax(logits)[side]              (section 3)

Both patches go through one encoder. Between them is a gap, and each axis of their distance is jittered, so that lines and textures
that go on from one to the other do not give the side away. Nor does the fringe of colours that a lens makes, whose direction tells
the place in the image: ``chroma`` removes it in one of the paper's two ways.

    project:  x <- x - <x, g> g, g = (-1, 2, -1) / sqrt(6): green against magenta is lost
    drop:     all channels but one, drawn for each patch, become noise of a hundredth of that one's standard deviation
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_choice, check_whole

from ._checks import check_widths, given
from ._common import ProjectionHead
from ._patches import cut_patches, drawn_below
from ._pretext import PretextMethod, check_generator, check_images

SIDES = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # (down, right)


class RelativePosition(PretextMethod):
    """Relative position around any encoder of patches: ``RelativePosition(backbone)(images)`` is the loss to call ``backward`` on.

    Doersch et al. 2015, https://arxiv.org/abs/1505.05192, section 3.

    Args:
        backbone: the encoder, any module from patches (N, C, S, S) to features (N, feature_dim). It may also return maps, a mapping
            or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        patch_size: side S of a patch in pixels.
        gap: pixels between the patches before the jitter; by default half of ``patch_size``, as in the paper.
        jitter: most pixels by which the second patch is moved along each axis, at most ``gap``; by default a fourteenth of
            ``patch_size``, as in the paper, and at least 1 where there is a gap.
        pairs: pairs of patches of each image in a batch.
        chroma: "project" or "drop", which need 3 channels, or "none".
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.

    Images need sides of at least 2 ``patch_size`` + ``gap`` + ``jitter``. ``embed`` gives the features of whole images, without
    their green against magenta where ``chroma`` is "project".

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> method = RelativePosition(backbone, patch_size=6)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        patch_size: int = 10,
        gap: int | None = None,
        jitter: int | None = None,
        pairs: int = 1,
        chroma: str = "project",
        hidden_dim: int | None = None,
    ):
        check_widths("RelativePosition", patch_size=patch_size, pairs=pairs, **given(hidden_dim=hidden_dim))
        gap = patch_size // 2 if gap is None else check_whole("RelativePosition", "gap", gap, 0)
        jitter = min(gap, max(1, patch_size // 14)) if jitter is None else check_whole("RelativePosition", "jitter", jitter, 0)
        if jitter > gap:
            raise ValueError(f"RelativePosition: jitter must be at most gap, {gap}, so that patches never overlap, got {jitter}")
        check_choice("RelativePosition", "chroma", chroma, ("project", "drop", "none"))
        super().__init__(backbone, feature_dim)
        self.patch_size, self.gap, self.jitter, self.pairs, self.chroma = patch_size, gap, jitter, pairs, chroma
        self.head = ProjectionHead(2 * self.feature_dim, hidden_dim or self.feature_dim, len(SIDES))

    def cut(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, C, H, W) -> first and second patches (B pairs, C, S, S) each, sides (B pairs,) that the second ones lie on."""
        size = self.patch_size
        least = 2 if self.training and self.pairs == 1 else 1  # rows that the batch norm of the head sees
        check_images("RelativePosition", images, least, side=2 * size + self.gap + self.jitter)
        check_generator("RelativePosition", generator, images)
        count = (len(images), self.pairs)
        side = drawn_below(len(SIDES), count, images, generator)
        moved = drawn_below(2 * self.jitter + 1, (*count, 2), images, generator) - self.jitter
        offset = torch.tensor(SIDES, device=images.device)[side] * (size + self.gap) + moved
        room = torch.tensor(images.shape[2:], device=images.device) - size
        first = drawn_below(room - offset.abs() + 1, (*count, 2), images, generator) + (-offset).clamp_min(0)
        places = torch.cat([first, first + offset], 1)
        patches = cut_patches(images, places[..., 0], places[..., 1], size).unflatten(1, (2, self.pairs))
        return patches[:, 0].flatten(0, 1), patches[:, 1].flatten(0, 1), side.flatten()

    def guarded(self, patches: Tensor, generator: torch.Generator | None) -> Tensor:
        """patches (N, C, S, S) without what chromatic aberration leaves in them."""
        if self.chroma == "none":
            return patches
        if patches.shape[1] != 3:
            raise ValueError(
                f"RelativePosition: chroma='{self.chroma}' needs images of 3 channels, got {patches.shape[1]}; pass chroma='none'"
            )
        if self.chroma == "project":
            green = torch.tensor([-1.0, 2.0, -1.0], dtype=patches.dtype, device=patches.device)[:, None, None]
            return patches - (patches * green).sum(1, keepdim=True) * green / 6
        kept = drawn_below(3, (len(patches), 1, 1, 1), patches, generator)
        level = patches.gather(1, kept.expand_as(patches[:, :1])).std((1, 2, 3), keepdim=True, unbiased=False) / 100
        noise = torch.randn(patches.shape, generator=generator, dtype=patches.dtype, device=patches.device) * level
        return patches.where(torch.arange(3, device=patches.device).view(1, 3, 1, 1) == kept, noise)

    def question(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) -> logits (B pairs, 8), sides (B pairs,) in the order of ``SIDES``."""
        first, second, side = self.cut(images, generator)
        features = self.features(self.guarded(torch.cat([first, second]), generator))
        return self.head(torch.cat(features.chunk(2), 1)), side

    def embed(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> features of whole images (B, feature_dim)."""
        check_images("RelativePosition", images)
        return self.features(self.guarded(images, None) if self.chroma == "project" else images)
