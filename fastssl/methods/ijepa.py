"""I-JEPA (Assran et al. 2023): from a part of the patches, predict what a teacher that sees the whole image makes of other blocks.

    z = encoder(context patches)    h = teacher(whole image)
    pred_m = W' norm(predictor(W z + positions, mask token + positions of block m))
    loss = mean of smooth_l1(pred_m - LN(h)[block m])

Nothing is painted: targets are features, the teacher is a moving average of the encoder, and no augmentation is needed. Only the
context's patches are embedded (``embed_visible``), and targets are normalised, gathered and compared in one pass
(``masked_latent_loss``).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.functional import gather_tokens, masked_latent_loss
from fastssl.masking import ContextAndTargets

from ._block import check_heads
from ._checks import check_positive, check_widths
from ._latent_predictor import LatentPredictor, check_block_options, teacher_tokens
from ._masked import pooled_features
from ._recompute import once
from ._teacher import MovingTeacher, check_schedule


class IJEPA(MovingTeacher, LatentPredictor):
    """I-JEPA around a vision transformer: ``IJEPA(backbone)(images)`` is the loss to call ``backward`` on.

    Assran et al. 2023, https://arxiv.org/abs/2301.08243, section 3. Blocks are those of ``multi_block_mask``.

    Args:
        backbone: as for ``MAE``.
        predictor_dim, predictor_depth, predictor_heads: width, number of blocks and heads of the predictor. The defaults are the
            paper's for its smaller encoders.
        blocks: options of ``multi_block_mask`` by name: ``num_targets``, ``target_scale``, ``target_aspect``, ``context_scale``,
            ``min_keep``, ``context_keep``. Without the last one a GPU is waited for in each step. ``min_keep`` is by default 10,
            or a sixth of the patches where that is less.
        beta: difference at which the smooth L1 loss goes from a square to a line.
        momentum: share of the teacher that is kept at the first step.
        final_momentum: share that the momentum reaches over ``total_steps`` along half a cosine.
        total_steps: number of steps of the training. None: the momentum stays.
        pixel_mean, pixel_std: (image - mean) / std is what encoder and teacher see.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: a backbone that is no plain vision transformer, or an argument out of its range.

    Examples:
        >>> from fastssl.methods import VisionTransformer
        >>> backbone = VisionTransformer(image_size=16, patch_size=2, width=8, depth=1, heads=2)
        >>> method = IJEPA(backbone, predictor_dim=8, predictor_depth=1, predictor_heads=2)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images).shape, method.embed(images).shape, int(method.step)
        (torch.Size([]), torch.Size([5, 8]), 1)
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        predictor_dim: int = 384,
        predictor_depth: int = 6,
        predictor_heads: int = 6,
        blocks: Mapping[str, Any] | None = None,
        beta: float = 1.0,
        momentum: float = 0.996,
        final_momentum: float | None = 1.0,
        total_steps: int | None = None,
        pixel_mean: float = 0.0,
        pixel_std: float = 1.0,
    ):
        widths = {"predictor_dim": predictor_dim, "predictor_depth": predictor_depth, "predictor_heads": predictor_heads}
        check_widths("IJEPA", **widths)
        check_heads("IJEPA", "predictor_dim", predictor_dim, "predictor_heads", predictor_heads)
        if predictor_dim % 4:
            raise ValueError(f"IJEPA: predictor_dim must be a multiple of 4, for its sine positions, got {predictor_dim}")
        check_positive("IJEPA", beta=beta)
        check_block_options(blocks)
        super().__init__(backbone, pixel_mean, pixel_std)
        self.beta = beta
        check_schedule("IJEPA", momentum, final_momentum, total_steps)
        self.set_blocks(blocks or {})
        self.add_predictor(predictor_dim, predictor_depth, predictor_heads)
        self.add_teacher(momentum, final_momentum, total_steps)

    def student(self) -> nn.Module:
        return self.backbone

    def forward(
        self, images: Tensor, *, blocks: ContextAndTargets | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of a batch of images. In training mode the teacher moves before.

        Args:
            images: (N, C, H, W) float, of the backbone's size.
            blocks: context and targets of each image, as ``multi_block_mask`` draws them; by default they are drawn here.
            generator: a generator of the CPU that draws the blocks; by default torch's own.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean over all features of all predicted patches.

        Raises:
            TypeError: images that are not floating, or of another dtype than the model's outside of autocast; a ``generator`` that
                is none.
            ValueError: images of another shape or device; both ``blocks`` and ``generator``.
        """
        images = self.scaled(images)
        if blocks is None:
            blocks = self.choose(len(images), generator, images.device)
        elif generator is not None:
            raise ValueError("IJEPA: only one of blocks and generator can be given")
        self.check_blocks(blocks, images)
        context, targets = blocks
        pred = self.predict(self.context_features(images, context), context, targets)
        latents = once(self, images, lambda: self.targets(images))[0]
        return masked_latent_loss(pred.flatten(1, 2), latents, targets.flatten(1), loss="smooth_l1", beta=self.beta)

    @torch.no_grad()
    def targets(self, images: Tensor) -> list[Tensor]:
        """Moves the teacher, and then asks it: its output (N, L, E) for the patches of whole images, before the normalisation."""
        self.move_teacher()
        teacher = self.teacher.module
        return [teacher_tokens(teacher, images)]

    @torch.no_grad()
    def latents(self, images: Tensor, blocks: ContextAndTargets) -> Tensor:
        """What the loss compares predictions with: the teacher's normalised output (N, M T, E) at the targets, in their order."""
        tokens = teacher_tokens(self.teacher.module, images)
        return gather_tokens(F.layer_norm(tokens, tokens.shape[2:], eps=1e-5), blocks.target_ids.flatten(1))

    def embed(self, images: Tensor) -> Tensor:
        """Features of whole images by the teacher, as in the paper.

        Args:
            images: (N, C, H, W) float, of the backbone's size.

        Returns:
            (N, D), as the backbone pools its tokens: the class token, or their mean.
        """
        return pooled_features(self.teacher.module, self.scaled(images))
