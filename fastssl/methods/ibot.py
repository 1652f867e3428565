"""iBOT (Zhou et al. 2022) as DINOv2 trains it (Oquab et al. 2024): DINO on images, the same on masked patches, and KoLeo.

    loss = DINO(class features) + w_p / images sum over masked patches i of CE(teacher_i, student_i) / (masked patches of its image)
         + w_k sum over global crops of KoLeo(class features)

The student's global crops are masked: half of them have a block of patches replaced by a learned mask token. The teacher sees them
whole, and its scores of these patches, centred or balanced, are what the student predicts. KoLeo pushes each feature away from its
nearest neighbour in the batch.
"""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.checks import check_number, check_range, check_whole
from fastssl.distributed import Ranks
from fastssl.functional import koleo

from ._checks import check_flags
from ._crops import check_crops, check_part, through
from ._masked_crops import IBOTHead, MaskedCrops, checked_blocks, chosen
from ._recompute import once
from ._tokens import find_grid, mask_token_shape, tokens_of
from .dino import DINO


class IBOT(MaskedCrops):
    """iBOT around an encoder with patches: ``IBOT(backbone)(global_crops, local_crops)`` is the loss to call ``backward`` on.

    Zhou et al. 2022, https://arxiv.org/abs/2111.07832, equations 2 and 3; Oquab et al. 2024, https://arxiv.org/abs/2304.07193,
    section 4.

    Args:
        backbone: ``fastssl.methods.VisionTransformer`` or timm's, made for the size of the global crops, with ``dynamic_img_size``
            for the local ones; or an encoder with ``forward_features`` to maps (N, D, h, w), such as timm's convolutional models,
            whose features are the mean over the places of the maps. In a transformer the mask token stands in for the embedding
            of a masked patch, in another encoder for the colour of its pixels.
        feature_dim: width of the features. By default a probe finds it.
        image_size: side of the global crops, for an encoder with maps.
        separate_heads: whether patches have a head of their own.
        mask_share: share of the global crops that are masked.
        mask_scale: the least and the largest area of the masked block, as a share of the grid of patches.
        patch_weight: weight of the loss of patches.
        koleo_weight: weight of KoLeo.
        options: ``out_dim``, ``hidden_dim``, ``bottleneck_dim``, the temperatures, ``warmup``, ``frozen``, ``centering``,
            ``center_momentum`` and what concerns the teacher, as of ``DINO``; ``centering`` is "sinkhorn" unless given.

    With several processes losses, centres and Sinkhorn are those of one process with the joined batch.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone without patches.

    Examples:
        >>> from fastssl.methods import VisionTransformer
        >>> backbone = VisionTransformer(8, 2, width=8, depth=1, heads=2, class_token=True, dynamic_img_size=True)
        >>> method = IBOT(backbone, out_dim=32, bottleneck_dim=4, total_steps=100)
        >>> loss = method([torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8)], [torch.rand(5, 3, 4, 4)])
        >>> loss.shape, int(method.step)
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        image_size: int = 32,
        separate_heads: bool = False,
        mask_share: float = 0.5,
        mask_scale: tuple[float, float] = (0.1, 0.5),
        patch_weight: float = 1.0,
        koleo_weight: float = 0.1,
        **options: Any,
    ):
        if unknown := options.keys() - inspect.signature(DINO.__init__).parameters.keys():
            raise TypeError(f"IBOT: {min(unknown)} is no argument of IBOT or DINO")
        check_flags("IBOT", separate_heads=separate_heads)
        check_part("IBOT", mask_share=mask_share)
        check_range("IBOT", "mask_scale", mask_scale)
        check_number("IBOT", "patch_weight", patch_weight, 0.0)
        check_number("IBOT", "koleo_weight", koleo_weight, 0.0)
        image_size = check_whole("IBOT", "image_size", image_size, 1)
        self.separate_heads = separate_heads
        super().__init__(backbone, feature_dim, **{"centering": "sinkhorn"} | options)
        self.image_shape, self.grid = find_grid("IBOT", backbone, image_size)
        if min(self.grid) < 2:
            raise ValueError(f"IBOT: image_size must give at least 2 x 2 patches, some of which are masked, got {self.grid}")
        self.mask_share, self.mask_scale = mask_share, (mask_scale[0], mask_scale[1])
        self.patch_weight, self.koleo_weight = patch_weight, koleo_weight
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(mask_token_shape(backbone)), std=0.02))
        self.patch_center: Tensor
        self.register_buffer("patch_center", torch.zeros_like(self.center))

    def make_head(self, width: int, hidden_dim: int, bottleneck_dim: int, out_dim: int) -> IBOTHead:
        return IBOTHead(width, hidden_dim, bottleneck_dim, out_dim, self.separate_heads)

    @property
    def head(self) -> IBOTHead:
        return cast(IBOTHead, self.encoder.head)

    def forward(
        self,
        global_crops: Sequence[Tensor],
        local_crops: Sequence[Tensor] = (),
        *,
        blocks: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The loss of several crops of the same samples. In training mode the teacher moves before, and the centres after.

        Args:
            global_crops: T tensors (B, C, H, W) float of the encoder's size; T and B are at least 2.
            local_crops: tensors (B, C, h, w) float, which only the student sees, and whole.
            blocks: what is masked, as ``draw_blocks`` gives it for T B crops, which is called unless this is given.

        Returns:
            Scalar float32 (float64 for a float64 model).

        Raises:
            TypeError: no lists of tensors, or crops of different dtypes or devices.
            ValueError: crops of different samples or of another size, fewer than two global crops, or a B below 2.
        """
        crops = check_crops("IBOT", global_crops, local_crops)
        if tuple(crops[0].shape[1:]) != self.image_shape:
            wanted = f"the encoder's shape (B, {', '.join(map(str, self.image_shape))})"
            raise ValueError(f"IBOT: global_crops must have {wanted}, got {tuple(crops[0].shape)}")
        large = torch.cat(list(global_crops))
        rows, ids = self.draw_blocks(len(large), device=large.device) if blocks is None else checked_blocks(blocks)
        features, patches = tokens_of(self.backbone, large, self.mask_of(rows, ids, len(large)), self.mask_token)
        z = [self.head.project(features)]
        if local_crops:
            z.append(self.head.project(through(self.encoder.features, local_crops)))
        z_patch = self.head.of_patches.project(chosen(patches, rows, ids))
        taught = once(self, crops[0], lambda: self.teach_both(large, rows, ids))
        teacher, balance, temperature, learns, patch_teacher, patch_balance = taught
        loss = self.class_loss(self.head.prototypes(torch.cat(z), learns), teacher, balance, temperature, len(crops))
        student = self.head.of_patches.prototypes(z_patch, learns)
        loss = loss + self.patch_weight * self.patch_loss(student, patch_teacher, patch_balance, temperature, (ids, len(large)))
        if self.koleo_weight:
            spread = sum(koleo(part, group=Ranks()) for part in features.chunk(len(global_crops)))
            loss = loss + self.koleo_weight * spread
        return loss
