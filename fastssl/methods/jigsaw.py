"""Jigsaw puzzles (Noroozi and Favaro 2016): of 9 shuffled tiles of an image, the network names the permutation that shuffled them.

    f_i = backbone(tile_i)        logits = head(f_p(1), ..., f_p(9))        loss = mean of -log softmax(logits)[p]       (section 3)

The permutations p are a set in which any two differ in many places (``distant_permutations``). The network is the paper's
context-free one: each tile goes through the encoder alone, and the features meet in the head. So shuffling the features is
shuffling the tiles, and one encoding serves several puzzles. Each tile has mean 0 and standard deviation 1 in each channel and a
random place inside its cell, so that neither its brightness nor its edges tell what lies beside it.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_whole

from ._checks import check_widths, given
from ._common import ProjectionHead
from ._patches import GRID, cut_tiles, normalized, paste_tiles
from ._permutations import distant_permutations
from ._pretext import PretextMethod, check_images

TILES = GRID * GRID


class Jigsaw(PretextMethod):
    """Jigsaw puzzles around any encoder of tiles: ``Jigsaw(backbone)(images)`` is the loss to call ``backward`` on.

    Noroozi and Favaro 2016, https://arxiv.org/abs/1603.09246, section 3.

    Args:
        backbone: the encoder, any module from tiles (N, C, S, S) to features (N, feature_dim). It may also return maps, a mapping
            or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        num_permutations: number K of permutations, at least 2; the first one is the identity. The paper's largest set has 1000.
        tile_size: side S of a tile in pixels; by default 64/75 of a third of the shorter side of the images, as in the paper.
        puzzles: permutations of each image in a batch.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.

    ``embed`` gives the mean of the features of an image's tiles, which lie in the middle of their cells and keep their brightness
    and contrast. ``permutations`` (K, 9) is a buffer.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> method = Jigsaw(backbone, num_permutations=6)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    permutations: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        num_permutations: int = 64,
        tile_size: int | None = None,
        puzzles: int = 1,
        hidden_dim: int | None = None,
    ):
        num_permutations = check_whole("Jigsaw", "num_permutations", num_permutations, 2)
        if num_permutations > 362880:
            raise ValueError(f"Jigsaw: num_permutations must be at most 362880, the permutations of 9, got {num_permutations}")
        check_widths("Jigsaw", puzzles=puzzles, **given(tile_size=tile_size, hidden_dim=hidden_dim))
        super().__init__(backbone, feature_dim)
        self.tile_size, self.puzzles = tile_size, puzzles
        self.register_buffer("permutations", distant_permutations(num_permutations, TILES))
        self.head = ProjectionHead(TILES * self.feature_dim, hidden_dim or self.feature_dim, num_permutations)

    def encode(self, tiles: Tensor) -> Tensor:
        """Tiles (B, 9, C, S, S) -> features (B, 9, feature_dim)."""
        return self.features(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2])

    def named(self, features: Tensor, right: Tensor) -> Tensor:
        """features (B, 9, D) in their order; right (B,), which permutation shuffles them -> logits (B, K)."""
        shuffled = features.gather(1, self.permutations[right][..., None].expand_as(features))
        return self.head(shuffled.flatten(1))

    def draw(self, count: int, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Which permutations (count,) are asked for."""
        return torch.randint(len(self.permutations), (count,), generator=generator, device=images.device)

    def question(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) -> logits (B puzzles, K), permutations (B puzzles,)."""
        check_images("Jigsaw", images, 2 if self.training and self.puzzles == 1 else 1)  # rows that the batch norm of the head sees
        tiles = cut_tiles("Jigsaw", images, self.tile_size, generator)
        right = self.draw(len(images) * self.puzzles, images, generator)
        return self.named(self.encode(normalized(tiles)).repeat(self.puzzles, 1, 1), right), right

    def embed(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> the mean of the features of their tiles (B, feature_dim)."""
        return self.encode(cut_tiles("Jigsaw", images, self.tile_size, None, middle=True)).mean(1)

    @torch.no_grad()
    def solve(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """For a picture: a puzzle of each image, and its tiles where the network puts them.

        Args:
            images: (B, C, H, W) float.
            generator: what tiles and permutations are drawn from, by default torch's own of the device.

        Returns:
            Shuffled tiles and tiles put right, both (B, C, H, W), white around the tiles.
        """
        tiles = cut_tiles("Jigsaw", images, self.tile_size, generator)
        right = self.draw(len(images), images, generator)
        answers = self.named(self.encode(normalized(tiles)), right).argmax(1)
        rows = torch.arange(len(images), device=images.device)[:, None]
        shuffled = tiles[rows, self.permutations[right]]
        put_right = shuffled[rows, self.permutations[answers].argsort(1)]
        return paste_tiles(shuffled, *images.shape[2:]), paste_tiles(put_right, *images.shape[2:])
