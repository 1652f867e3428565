"""``attention.png``: what the class token of a transformer's last block looks at, one map for each head.

Caron et al. 2021, figure 1. Of the built-in transformer and of timm's with a class token.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.train.augment import as_float
from fastssl.train.evaluate import centre, evaluating
from fastssl.train.reconstruct import mosaic

COLUMNS = 10  # test images of the picture
MOST_HEADS = 12


def class_attention(backbone: Any, images: Tensor) -> Tensor | None:
    """Shares of the last block's class token.

    Args:
        backbone: a vision transformer with timm's attributes.
        images: (N, C, H, W), what it takes.

    Returns:
        (N, heads, h, w) in [0, 1], each map's largest value 1; None for an encoder without a class token or such blocks.

    Examples:
        >>> from fastssl.methods import VisionTransformer
        >>> backbone = VisionTransformer(8, 2, width=8, depth=1, heads=2, class_token=True)
        >>> class_attention(backbone, torch.rand(3, 3, 8, 8)).shape
        torch.Size([3, 2, 4, 4])
    """
    attention = getattr(backbone.blocks[-1], "attn", None) if getattr(backbone, "cls_token", None) is not None else None
    heads = getattr(attention, "heads", getattr(attention, "num_heads", None))
    if attention is None or heads is None or not hasattr(attention, "qkv"):
        return None
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), evaluating(backbone):
        try:
            backbone(images)
        finally:
            hook.remove()
        x = seen[0]
        q, k, _ = attention.qkv(x).view(len(x), x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (getattr(attention, name, nn.Identity())(part) for name, part in (("q_norm", q), ("k_norm", k)))
        share = (q[:, :, :1] @ k.transpose(2, 3) * q.shape[3] ** -0.5).float().softmax(3)[:, :, 0, backbone.num_prefix_tokens :]
    grid = [side // patch for side, patch in zip(images.shape[2:], backbone.patch_embed.proj.kernel_size, strict=True)]
    return (share / share.amax(2, keepdim=True)).view(len(x), heads, *grid)


@torch.no_grad()
def draw_attention(backbone: Any, data: Any, path: Path, *, device: torch.device | str) -> Path | None:
    """Test images (of training where there are none), and under each what the heads look at, white most and black least
    -> ``path``, or None where no image can be read or the encoder has no class token."""
    from fastssl.train.pictures import STYLE, plt, save

    half = data.test if len(data.test) else data.train
    chosen = torch.linspace(0, len(half) - 1, min(len(half), COLUMNS), dtype=torch.float64).long().tolist()
    images = centre(as_float(half.__getitems__(chosen)[0].to(device)), data.image_size)
    shares = class_attention(backbone, images) if len(images) and hasattr(backbone, "blocks") else None
    if shares is None:
        return None
    shares = shares[:, :MOST_HEADS] - shares[:, :MOST_HEADS].amin((2, 3), keepdim=True)
    shares = shares / shares.amax((2, 3), keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    maps = F.interpolate(shares, size=images.shape[2:], mode="nearest").cpu()
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    rows = [shown.clamp(0, 1).float().cpu(), *(maps[:, head, None].expand(-1, 3, -1, -1) for head in range(maps.shape[1]))]
    gap = max(1, images.shape[3] // 10)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(0.9 * len(images) + 1, 0.9 * len(rows)))
        axis.imshow(mosaic(rows, gap).numpy(), interpolation="nearest")
        axis.axis("off")
        for i in range(len(rows)):
            name = "image" if i == 0 else f"head {i}"
            axis.text(-gap, i * (images.shape[2] + gap) + images.shape[2] / 2, name, ha="right", va="center")
        save(figure, path)
    return path
