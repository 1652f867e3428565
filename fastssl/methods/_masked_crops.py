"""Which patches of which crops iBOT masks, and the heads that score them."""

from typing import Any, cast

import torch
from torch import Tensor

from fastssl.distributed import Ranks
from fastssl.functional import ibot_loss, multi_block_mask

from ._crops import DINOHead
from ._teacher import Encoder
from ._tokens import tokens_of
from .dino import DINO

ASPECT = (0.3, 1 / 0.3)  # height / width of a masked block


class IBOTHead(DINOHead):
    """DINO's head for features, and another one or the same for patches."""

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, out_dim: int, separate: bool):
        super().__init__(in_dim, hidden_dim, bottleneck_dim, out_dim)
        self.own = DINOHead(in_dim, hidden_dim, bottleneck_dim, out_dim) if separate else None

    @property
    def of_patches(self) -> DINOHead:
        return self if self.own is None else self.own


def checked_blocks(blocks: Any) -> tuple[Tensor, Tensor]:
    """``blocks``, refused where they are no rows (R,) and ids (R, M), int64."""
    pair = tuple(blocks) if isinstance(blocks, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) and part.dtype == torch.int64 for part in pair):
        raise TypeError(f"IBOT: blocks must be a pair of int64 tensors (R,) and (R, M), got {type(blocks).__name__}")
    rows, ids = pair
    if rows.ndim != 1 or ids.ndim != 2 or len(rows) != len(ids) or 0 in ids.shape:
        raise ValueError(f"IBOT: blocks must be rows (R,) and ids (R, M), got {tuple(rows.shape)} and {tuple(ids.shape)}")
    return rows, ids


def chosen(patches: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """patches (N, L, D), rows (R,), ids (R, M) -> the patches ids_r of crop rows_r, (R M, D)."""
    return patches[rows[:, None], ids].flatten(0, 1)


class MaskedCrops(DINO):
    """``DINO`` whose student sees some of the global crops with patches masked, and whose teacher scores these patches."""

    grid: tuple[int, int]
    mask_share: float
    mask_scale: tuple[float, float]
    patch_center: Tensor

    def draw_blocks(
        self, crops: int, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Which of ``crops`` global crops are masked, and which of their patches.

        Args:
            crops: number of global crops, all of them behind each other.
            generator: a generator of the CPU; by default torch's own.
            device: where the results lie.

        Returns:
            rows (R,) and ids (R, M), int64: the M patches of a block of each of R = ``mask_share`` x ``crops`` crops, at least one.
        """
        count = max(1, round(self.mask_share * crops))
        rows = torch.randperm(crops, generator=generator)[:count].to(device, non_blocking=True)
        seed = int(torch.randint(2**62, (), generator=generator))
        how: dict[str, Any] = {
            "num_targets": 1,
            "target_scale": self.mask_scale,
            "target_aspect": ASPECT,
            "min_keep": 1,
            "context_keep": 1,
        }
        return rows, multi_block_mask(count, self.grid, seed=seed, device=device, **how).target_ids[:, 0]

    def mask_of(self, rows: Tensor, ids: Tensor, crops: int) -> Tensor:
        """rows (R,), ids (R, M) -> (crops, h, w) bool, True = masked."""
        mask = torch.zeros(crops, self.grid[0] * self.grid[1], dtype=torch.bool, device=ids.device)
        mask[rows[:, None], ids] = True
        return mask.view(crops, *self.grid)

    def patch_loss(self, student: Tensor, teacher: Tensor, balance: Tensor, temperature: float | Tensor, of: tuple) -> Tensor:
        """student, teacher (R M, K) of masked patches -> the sum over crops of their means, over the number of all crops."""
        ids, crops = of
        center, potential = (balance, None) if self.centering == "center" else (None, balance)
        return ibot_loss(
            student,
            teacher,
            center,
            student_temperature=self.student_temperature,
            teacher_temperature=temperature,
            potential=potential,
            weight=student.new_full((len(student),), 1.0 / ids.shape[1], dtype=torch.float32),
            images=crops,
            group=Ranks(),
        )

    @torch.no_grad()
    def teach_both(self, large: Tensor, rows: Tensor, ids: Tensor) -> tuple:
        """Moves the teacher and asks it for global crops (T B, C, H, W): what ``DINO.teach`` gives, and the scores (R M, K) of the
        masked patches with what balances them (K,)."""
        temperature, learns = self.schedules()
        self.move_teacher()
        encoder = cast(Encoder, self.teacher.module)
        features, patches = tokens_of(encoder.backbone, large)
        head = cast(IBOTHead, encoder.head)
        teacher, patch_teacher = head(features), head.of_patches(chosen(patches, rows, ids))
        balance = self.balanced(teacher, temperature, self.center)
        return teacher, balance, temperature, learns, patch_teacher, self.balanced(patch_teacher, temperature, self.patch_center)
