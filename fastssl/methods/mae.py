"""Masked autoencoder (He et al. 2022): three quarters of the patches are removed, a light decoder paints them.

    visible = embed(patches[ids_keep]) + positions        z = encoder(visible)                        the visible patches only
    x = restore(W z, mask token) + positions              pred = W' norm(decoder(x))                  all places
    loss = mean over removed patches of mean_i (pred_i - pixel_i)^2

The patches are chosen before they are embedded (``mask_ids``, ``embed_visible``), put back in one pass (``restore_tokens``), and
only the rows of removed patches are predicted and compared (``masked_patch_loss``).
"""

import torch
from torch import Tensor, nn

from fastssl.functional import gather_tokens, mask_ids, masked_patch_loss, patchify
from fastssl.masking import MaskIds

from ._block import check_heads
from ._checks import check_flags, check_widths
from ._image_checks import check_random, check_ratio
from ._masked import pasted
from ._painting import EPS, PaintingDecoder


class MAE(PaintingDecoder):
    """MAE around a vision transformer: ``MAE(backbone)(images)`` is the loss to call ``backward`` on.

    He et al. 2022, https://arxiv.org/abs/2111.06377, section 3.

    Args:
        backbone: ``fastssl.methods.VisionTransformer``, or timm's, made for the images' size; class token, registers,
            ``no_embed_class``, ``norm_pre`` and a norm in the patch embedding are taken as they are.
        mask_ratio: share of the patches that is removed; K = int(L (1 - mask_ratio)) of the L patches stay.
        decoder_dim, decoder_depth, decoder_heads: width, number of blocks and heads of the decoder. The defaults are the paper's,
            for large encoders.
        norm_pix_loss: whether the loss compares with pixels normalised patch by patch.
        pixel_mean, pixel_std: (image - mean) / std is what the encoder sees and the loss compares.
        predict_only_masked: whether the decoder's last norm and layer see the removed patches only, which gives the same loss for
            less work.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: a backbone that is no plain vision transformer, a ratio that removes no patch or all.

    Examples:
        >>> from fastssl.methods import VisionTransformer
        >>> backbone = VisionTransformer(image_size=8, patch_size=2, width=8, depth=1, heads=2)
        >>> method = MAE(backbone, decoder_dim=8, decoder_depth=1, decoder_heads=2)
        >>> images = torch.rand(5, 3, 8, 8)
        >>> method(images).shape, method.embed(images).shape, method.reconstruct(images)[2].sum(1).tolist()
        (torch.Size([]), torch.Size([5, 8]), [12.0, 12.0, 12.0, 12.0, 12.0])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = False,
        pixel_mean: float = 0.0,
        pixel_std: float = 1.0,
        predict_only_masked: bool = True,
    ):
        name = type(self).__name__
        check_flags(name, norm_pix_loss=norm_pix_loss, predict_only_masked=predict_only_masked)
        check_widths(name, decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_heads=decoder_heads)
        check_heads(name, "decoder_dim", decoder_dim, "decoder_heads", decoder_heads)
        if decoder_dim % 4:
            raise ValueError(f"{name}: decoder_dim must be a multiple of 4, for its sine positions, got {decoder_dim}")
        super().__init__(backbone, pixel_mean, pixel_std)
        self.num_patches = self.grid[0] * self.grid[1]
        check_ratio(name, mask_ratio, self.num_patches)
        self.mask_ratio, self.norm_pix_loss, self.predict_only_masked = mask_ratio, norm_pix_loss, predict_only_masked
        self.add_decoder(decoder_dim, decoder_depth, decoder_heads)

    def forward(self, images: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of images.

        Args:
            images: (N, C, H, W) float, of the backbone's size.
            noise: (N, L); in each row the K patches with the smallest values stay. By default ``torch.rand`` draws it.
            generator: what ``torch.rand`` draws from, instead of ``noise``.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over the removed patches.

        Raises:
            TypeError: images or noise that are not floating, or images of another dtype than the model's outside of autocast.
            ValueError: images or noise of another shape or device, or both ``noise`` and ``generator``.
        """
        images = self.scaled(images)
        ids = self.choose(images, noise, generator)
        x = self.decode(images, ids)
        if self.predict_only_masked:
            pred = self.predict(gather_tokens(x, ids.ids_mask))
            return masked_patch_loss(
                images, pred, None, self.patch_size, norm_pix_loss=self.norm_pix_loss, eps=EPS, ids=ids.ids_mask
            )
        return masked_patch_loss(images, self.predict(x), ids.mask, self.patch_size, norm_pix_loss=self.norm_pix_loss, eps=EPS)

    def choose(self, images: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> MaskIds:
        size = (len(images), self.num_patches)
        check_random(self.name, noise, generator, size, images)
        return mask_ids(size, self.mask_ratio, noise=noise, generator=generator, device=images.device)

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
            1 = removed. With ``norm_pix_loss`` the predictions get the true mean and variance of their patches back, which a
            picture may know.
        """
        scaled = self.scaled(images)
        ids = self.choose(scaled, noise, generator)
        pred = self.predict(self.decode(scaled, ids))
        if self.norm_pix_loss:
            target = patchify(scaled, self.patch_size)
            pred = pred * (target.var(2, keepdim=True) + EPS).sqrt() + target.mean(2, keepdim=True)
        pred = pred * self.pixel_std + self.pixel_mean
        return *pasted(images, pred, ids.mask, self.patch_size, "pqc"), ids.mask
