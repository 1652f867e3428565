"""PIRL (Misra and van der Maaten 2020): an image and its shuffled tiles must both be found among all images, so that features do
not say what was done to an image.

    f = image_head(backbone(image))        g = puzzle_head(tile_head(backbone(tile_p(1))), ..., tile_head(backbone(tile_p(9))))
    loss = weight InstDisc(g, bank) + (1 - weight) InstDisc(f, bank)                                                     (eq. 5)

Both are brought to unit length and compared with the bank of ``InstDisc``, which holds a moving mean of f for each image, in one
pass over it. As there, the sum runs over the whole bank, where the paper estimates it from a sample (NCE, equation 4).
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_share, check_whole
from fastssl.loss.parts.dot_products import dot_rows

from ._checks import check_widths, given
from ._encoder import features_of
from ._patches import GRID, cut_tiles
from ._recompute import once, recomputing
from .instdisc import InstDisc


class PIRL(InstDisc):
    """Pretext-invariant features around any encoder: ``PIRL(backbone, len(dataset))(images, index)`` is the loss.

    Misra and van der Maaten 2020, https://arxiv.org/abs/1912.01991, equation 5, with jigsaw puzzles and the exact sum.

    Args:
        backbone: the encoder, any module from images, and from tiles of them (N, C, S, S), to features (N, feature_dim). It may
            also return maps, a mapping or a tuple: docs/methods.md, Encoders.
        num_samples: number N of samples in the training set. The bank has a row for each; it is float32 and in the state dict.
        feature_dim: width of the features. By default a probe finds it.
        projection_dim: width D of the embeddings, and of what each tile brings to that of a puzzle.
        temperature: above 0.
        momentum: share of the old row that stays in the bank at an update, at least 0 and below 1.
        weight: the paper's lambda in [0, 1], the share of the puzzle's term.
        tile_size: side S of a tile in pixels; by default 64/75 of a third of the shorter side of the images.

    ``embed`` gives the features of whole images.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> method = PIRL(backbone, num_samples=20, projection_dim=4)
        >>> loss = method(torch.rand(5, 3, 16, 16), torch.tensor([0, 3, 7, 8, 19]))
        >>> loss.shape, method.bank.shape
        (torch.Size([]), torch.Size([20, 4]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        feature_dim: int | None = None,
        *,
        projection_dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        weight: float = 0.5,
        tile_size: int | None = None,
    ):
        check_share("PIRL", "weight", weight, ", the share of the puzzle's term")
        check_widths("PIRL", **given(tile_size=tile_size))
        super().__init__(
            backbone, num_samples, feature_dim, projection_dim=projection_dim, temperature=temperature, momentum=momentum
        )
        self.weight = weight
        self.tile_size = None if tile_size is None else check_whole("PIRL", "tile_size", tile_size, 1)
        self.tile_head = nn.Linear(self.feature_dim, projection_dim)
        self.puzzle_head = nn.Linear(GRID * GRID * projection_dim, projection_dim)

    def puzzle_rows(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """images (B, C, H, W) -> embeddings (B, D) of their shuffled tiles, of unit length in the dtype of the bank."""
        tiles = cut_tiles("PIRL", images, self.tile_size, generator)
        order = torch.rand(tiles.shape[:2], generator=generator, device=images.device).argsort(1)
        features = features_of(self.backbone, tiles.flatten(0, 1), self.feature_dim, "PIRL", given="tiles of images")
        parts = self.tile_head(features).unflatten(0, tiles.shape[:2])
        shuffled = parts.gather(1, order[..., None].expand_as(parts))
        return nn.functional.normalize(self.puzzle_head(shuffled.flatten(1)).to(self.bank.dtype), dim=1)

    @torch.no_grad()
    def answer(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Which image of the batch each puzzle is most like, for a score.

        Args:
            images: (B, C, H, W) float.
            generator: what the puzzles are drawn from, by default torch's own of the device.

        Returns:
            Answers and right answers, both (B,) int64.
        """
        cosines = self.puzzle_rows(images, generator) @ self.rows(images).T
        return cosines.argmax(1), torch.arange(len(images), device=images.device)

    def forward(self, images: Tensor, index: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch. In training mode the embeddings of the images are averaged into their rows of the bank.

        Args:
            images: (B, C, H, W) float.
            index: (B,) integers in [0, num_samples), which samples the images are of.
            generator: what the puzzles are drawn from, by default torch's own of the device.

        Returns:
            Scalar float32.

        Raises:
            TypeError: images that are not floating, or an ``index`` that is no integers.
            ValueError: images that are too small for the tiles, or an ``index`` of another length or outside of the bank.
        """
        index = self.checked(images, index)
        puzzles = self.puzzle_rows(images, generator)
        z = self.rows(images)
        own, places, old = once(self, images, lambda: self.rows_now(index))
        bank = self.bank.index_copy(0, places, old) if recomputing() else self.bank
        both = torch.cat([puzzles, z])
        losses = self.against_bank(both, dot_rows(both, own.repeat(2, 1)), index.repeat(2), bank)
        puzzle, image = losses.view(2, -1).mean(1)
        if self.training and not recomputing():
            self.update_bank(z, places)
        return self.weight * puzzle + (1.0 - self.weight) * image
