"""SimMIM (Xie et al. 2022): the encoder sees all places, mask tokens in those of removed patches; one linear layer paints them.

    x_l = m_l ? mask token : embed(patch_l), + position_l      pred = W encoder(x)      loss = mean over removed of |pred - pixel|

Units of several patches are removed together, ceil(units ratio) of them. Only visible patches are embedded (``embed_visible``), the
mask token and positions are added in one pass (``restore_tokens``), and only removed patches are predicted and compared.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_whole
from fastssl.functional import gather_tokens, mask_ids, masked_patch_loss, restore_tokens
from fastssl.masking import MaskIds, grid_mask

from ._vit import (
    MaskedImages,
    check_random,
    check_ratio,
    embed_patches,
    full_positions,
    init_linear,
    pasted,
    run_blocks,
)


class SimMIM(MaskedImages):
    """SimMIM around a vision transformer: ``SimMIM(backbone)(images)`` is the loss to call ``backward`` on.

    Args:
        backbone: as for ``MAE``.
        mask_ratio: share of the units that is removed.
        mask_size: side of a unit in pixels, a multiple of the patch's; the images' sides are multiples of it.
        pixel_mean, pixel_std: (image - mean) / std is what the encoder sees and the loss compares.

    Raises:
        ValueError: a backbone that is no plain vision transformer, units that do not fit, a ratio that removes no unit or all.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mask_ratio: float = 0.6,
        mask_size: int = 32,
        pixel_mean: float = 0.0,
        pixel_std: float = 1.0,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        proj = backbone.patch_embed.proj
        mask_size = check_whole("SimMIM", "mask_size", mask_size, 0)
        self.unit = mask_size // self.patch_size[0]
        if self.patch_size[0] != self.patch_size[1] or mask_size < 1 or mask_size % self.patch_size[0]:
            raise ValueError(f"SimMIM: mask_size must be a multiple of the patch size {self.patch_size}, got {mask_size}")
        if any(side % self.unit for side in self.grid):
            raise ValueError(
                f"SimMIM: mask_size {mask_size} must divide the images' sides, {self.grid} patches of {self.patch_size}"
            )
        self.units = self.grid[0] * self.grid[1] // self.unit**2
        self.num_keep = check_ratio("SimMIM", mask_ratio, self.units, "mask_ceil") * self.unit**2
        self.mask_ratio = mask_ratio
        self.mask_token = nn.Parameter(torch.empty(1, 1, proj.out_channels))
        self.head = nn.Linear(proj.out_channels, proj.in_channels * self.patch_size[0] ** 2)
        self.head.apply(init_linear)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The loss, scalar float32 (float64 for a float64 model).

        Args:
            images: (N, C, H, W) float, of the backbone's size.
            noise: (N, units): in each row those of the smallest stay. None: ``torch.rand`` of ``generator``.
        """
        images = self.scaled(images)
        ids = self.choose(images, noise, generator)
        pred = self.head(gather_tokens(self.encode(images, ids), ids.ids_mask))
        return masked_patch_loss(images, pred, None, self.patch_size, layout="cpq", loss="l1", ids=ids.ids_mask)

    def choose(self, images: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> MaskIds:
        """The unit mask as ids: visible patches first, each half in the order of the grid."""
        check_random("SimMIM", noise, generator, (len(images), self.units), images)
        random = {"noise": noise, "generator": generator, "device": images.device}
        mask = grid_mask(len(images), self.grid, self.mask_ratio, unit=self.unit, **random)
        return mask_ids(tuple(mask.shape), noise=mask, num_keep=self.num_keep)

    def encode(self, images: Tensor, ids: MaskIds) -> Tensor:
        """Encoded tokens (N, L, E) of all patches, of which the encoder sees the visible ones."""
        before = self.backbone.num_prefix_tokens
        x = embed_patches(self.backbone, images, ids.ids_keep, positions=False)
        positions = full_positions(self.backbone)
        x = restore_tokens(x, ids.ids_restore, self.mask_token, num_prefix_tokens=before, pos_embed=positions)
        return run_blocks(self.backbone, x)[:, before:]

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For pictures: images with the removed patches 0, images with the predicted patches there, mask (N, L), 1 = removed."""
        scaled = self.scaled(images)
        ids = self.choose(scaled, noise, generator)
        pred = self.head(self.encode(scaled, ids)) * self.pixel_std + self.pixel_mean
        return *pasted(images, pred, ids.mask, self.patch_size, "cpq"), ids.mask
