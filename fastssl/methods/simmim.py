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

from ._block import init_linear
from ._image_checks import check_random, check_ratio
from ._masked import MaskedImages, pasted
from ._timm import embed_patches, full_positions, run_blocks


class SimMIM(MaskedImages):
    """SimMIM around a vision transformer: ``SimMIM(backbone)(images)`` is the loss to call ``backward`` on.

    Xie et al. 2022, https://arxiv.org/abs/2111.09886, section 3.

    Args:
        backbone: as for ``MAE``.
        mask_ratio: share of the units that is removed.
        mask_size: side of a unit in pixels, a multiple of the patch's side that divides the sides of the images.
        pixel_mean, pixel_std: (image - mean) / std is what the encoder sees and the loss compares.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: a backbone that is no plain vision transformer, units that do not fit, a ratio that removes no unit or all.

    Examples:
        >>> from fastssl.methods import VisionTransformer
        >>> backbone = VisionTransformer(image_size=8, patch_size=2, width=8, depth=1, heads=2)
        >>> method = SimMIM(backbone, mask_size=4)
        >>> images = torch.rand(5, 3, 8, 8)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 8]))
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
        proj = self.backbone.patch_embed.proj
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
        """The loss of a batch of images.

        Args:
            images: (N, C, H, W) float, of the backbone's size.
            noise: (N, units); in each row the units with the smallest values stay. By default ``torch.rand`` draws it.
            generator: what ``torch.rand`` draws from, instead of ``noise``.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over the removed patches.

        Raises:
            TypeError: images or noise that are not floating, or images of another dtype than the model's outside of autocast.
            ValueError: images or noise of another shape or device, or both ``noise`` and ``generator``.
        """
        images = self.scaled(images)
        ids = self.choose(images, noise, generator)
        pred = self.head(gather_tokens(self.encode(images, ids), ids.ids_mask))
        return masked_patch_loss(images, pred, None, self.patch_size, layout="cpq", loss="l1", ids=ids.ids_mask)

    def choose(self, images: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> MaskIds:
        """The unit mask as ids: visible patches first, each half in the order of the grid."""
        check_random("SimMIM", noise, generator, (len(images), self.units), images)
        mask = grid_mask(
            len(images), self.grid, self.mask_ratio, unit=self.unit, noise=noise, generator=generator, device=images.device
        )
        return mask_ids((mask.shape[0], mask.shape[1]), noise=mask, num_keep=self.num_keep)

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
        """Images for a picture of what the method paints.

        Args:
            images: (N, C, H, W) float, of the backbone's size.
            noise, generator: as of ``forward``.

        Returns:
            Three tensors: images with the removed patches 0, images with the predicted patches there, and the mask (N, L),
            1 = removed.
        """
        scaled = self.scaled(images)
        ids = self.choose(scaled, noise, generator)
        pred = self.head(self.encode(scaled, ids)) * self.pixel_std + self.pixel_mean
        return *pasted(images, pred, ids.mask, self.patch_size, "cpq"), ids.mask
