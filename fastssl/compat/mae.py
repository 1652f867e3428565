"""Methods for ``MaskedAutoencoderViT`` of facebookresearch/mae (He et al. 2022), to be set on the class one by one or all at once.

    MaskedAutoencoderViT.forward_loss = forward_loss            fastssl.patch("mae", MaskedAutoencoderViT)

One ``torch.rand(N, L)`` is drawn, so a seed gives the same mask as in that repository. ``forward_encoder`` embeds the visible
patches only, where nothing could see the difference: ``random_masking`` is the one of this file, ``patch_embed`` is timm's
``PatchEmbed`` without a norm, hooks or padding, its convolution plain. Elsewhere it calls ``patch_embed`` and
``self.random_masking``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastssl import masking
from fastssl.ops.embed_visible import embed_visible
from fastssl.ops.mask_ids import mask_ids
from fastssl.ops.patch_loss import masked_patch_loss
from fastssl.ops.restore_tokens import restore_tokens

__all__ = ["forward_decoder", "forward_encoder", "forward_loss", "patchify", "random_masking", "unpatchify"]


def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, L, D) -> kept tokens (N, K, D), mask (N, L) float32, 1 = removed, ids_restore (N, L) int64.

    TypeError, ValueError: as ``fastssl.functional.random_masking``.
    """
    return masking.random_masking(x, mask_ratio)


def patchify(self, imgs: Tensor) -> Tensor:
    """imgs (N, C, H, W) -> (N, L, C p q), entries in the order (p, q, c)."""
    return masking.patchify(imgs, self.patch_embed.patch_size)


def unpatchify(self, x: Tensor) -> Tensor:
    """x (N, L, C p q), L a square number -> imgs (N, C, H, W)."""
    return masking.unpatchify(x, self.patch_embed.patch_size)


def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
    """imgs (N, C, H, W), pred (N, L, C p q), mask (N, L), 1 = removed -> mean over the removed patches, float32.

    0 where nothing is removed (the repository gives NaN). TypeError, ValueError, NotImplementedError: as ``masked_patch_loss``.
    """
    return patch_loss(imgs, pred, mask, self.patch_embed.patch_size, self.norm_pix_loss)


def forward_encoder(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C, H, W) -> encoded class token and kept patches (N, 1 + K, E), mask (N, L) float32, ids_restore (N, L) int64.

    TypeError, ValueError: as ``mask_ids`` and ``embed_visible``.
    """
    if uses(self, "random_masking", random_masking) and plain_patch_embed(self.patch_embed, x):
        rows, columns = self.patch_embed.patch_size
        length = x.shape[2] // rows * (x.shape[3] // columns)
        ids = mask_ids((len(x), length), mask_ratio, device=x.device)
        mask, ids_restore = ids.mask, ids.ids_restore
        x = embed_kept(x, self.patch_embed.proj, ids.ids_keep, self.cls_token, self.pos_embed)
    else:
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        x = prepend(self.cls_token + self.pos_embed[:, :1], x)
    for block in self.blocks:
        x = block(x)
    return self.norm(x), mask, ids_restore


def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
    """x (N, 1 + K, E), ids_restore (N, L) int64 -> predicted pixels of all patches (N, L, C p q).

    TypeError, ValueError: as ``restore_tokens``.
    """
    x = restore_tokens(self.decoder_embed(x), ids_restore, self.mask_token, pos_embed=self.decoder_pos_embed)
    for block in self.decoder_blocks:
        x = block(x)
    return self.decoder_pred(self.decoder_norm(x))[:, 1:]


# --- shared with the methods of other libraries ----------------------------------------------------------------------------


def patch_loss(imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int | tuple[int, int], norm_pix_loss: bool) -> Tensor:
    """``masked_patch_loss``, 0 where nothing is removed; plain PyTorch where the images need a gradient, which it gives none."""
    if not (isinstance(imgs, Tensor) and imgs.requires_grad and torch.is_grad_enabled()):
        return masked_patch_loss(imgs, pred, mask, patch_size, norm_pix_loss=norm_pix_loss, empty="zero")
    target = masking.patchify(imgs, patch_size)
    if norm_pix_loss:
        var, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
    error = (pred - target).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp_min(1)


def embed_kept(images: Tensor, projection: nn.Conv2d, ids_keep: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    """images (N, C, H, W), ids_keep (N, K), cls_token (1, 1, E), pos_embed (1, 1 + L, E) -> (N, 1 + K, E).

    Under autocast in the dtype of ``pos_embed``, as a sum with it: the blocks then add to float32.
    """
    out = embed_visible(images, projection.weight, ids_keep, projection.bias, pos_embed=pos_embed, prefix_tokens=cls_token)
    return out.to(torch.promote_types(out.dtype, pos_embed.dtype))


def prepend(token: Tensor, x: Tensor) -> Tensor:
    """token (1, 1, E), x (N, K, E) -> (N, 1 + K, E)."""
    return torch.cat([token.expand(len(x), -1, -1), x], dim=1)


def uses(module: nn.Module, name: str, method) -> bool:
    """Whether ``module.name`` is this very function, replaced neither in a subclass nor on the object."""
    found = getattr(getattr(module, name), "__func__", None)
    return getattr(found, "_fastssl", found) is method  # as fastssl.patch binds it


def unwatched(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward and nothing else: no hooks, of it or of all modules, no own forward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and not _has_any_global_hook() and "forward" not in vars(module)


def plain_projection(module: nn.Module) -> bool:
    """Whether the module is a convolution whose stride is its kernel, unwatched and not parametrised."""
    return (
        type(module) is nn.Conv2d
        and module.stride == module.kernel_size
        and module.padding == (0, 0)
        and module.dilation == (1, 1)
        and module.groups == 1
        and unwatched(module)
    )


def plain_patch_embed(embed: Any, images: Tensor) -> bool:
    """Whether timm's ``PatchEmbed`` does no more to these images than project their patches."""
    return (
        type(embed).__name__ == "PatchEmbed"
        and type(embed).__module__.startswith("timm.")
        and unwatched(embed)
        and plain_projection(embed.proj)
        and isinstance(getattr(embed, "norm", None), nn.Identity | None)
        and getattr(embed, "flatten", True)
        and not getattr(embed, "dynamic_img_pad", False)
        and images.dim() == 4
        and embed.img_size is not None
        and tuple(images.shape[2:]) == tuple(embed.img_size)
    )
