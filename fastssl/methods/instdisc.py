"""Instance discrimination (Wu et al. 2018): every picture is its own class, and a bank holds an embedding for each.

    loss_i = -log exp(<z_i, bank_i> / t) / sum_j exp(<z_i, bank_j> / t)                                    (eq. 2)
    bank_i <- normalize(momentum bank_i + (1 - momentum) z_i)                                      after the loss

The paper approximates the sum by noise-contrastive estimation; here it runs over the whole bank, exactly, and no (B, N) matrix
exists. The bank is a constant of the loss: nothing of it is kept for the backward, so its update may come before that.

The bank starts with random rows, as in the paper. ``fill_bank`` with every sample before the first epoch saves the epochs in which
embeddings that are still alike would flee from each other towards positives that mean nothing.
"""

import torch
from torch import Tensor, nn

from fastssl.functional import similarity_lse
from fastssl.loss._common import arange_ids, dot_rows, softplus

from ._common import ImageMethod, check_integers, check_tensors, random_unit_rows


class InstDisc(ImageMethod):
    """Instance discrimination around any image encoder: ``InstDisc(backbone, len(dataset))(images, index)`` is the loss.

    Args:
        backbone: images (B, 3, H, W) -> features (B, feature_dim), or (B, feature_dim, 1, 1).
        num_samples: N, pictures of the training set; the bank has a row for each, float32, in the state dict.
        feature_dim: width of the features; by default that of a probe image, or ``backbone.num_features``.
        projection_dim: width D of the embeddings; one linear layer leads to it.
        temperature: above 0.
        momentum: share of the old row that stays in the bank at an update, from 0 up to (not with) 1.
        proximal_weight: of |z_i - bank_i|^2, the paper's regulariser (eq. 10), added to the loss.

    One process only so far: the bank needs the rows of every sample.
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
        proximal_weight: float = 0.0,
    ):
        super().__init__(backbone, feature_dim, temperature)
        if not (isinstance(num_samples, int) and num_samples >= 2):
            raise ValueError(f"InstDisc: num_samples must be a whole number of at least 2, got {num_samples}")
        if not 0 <= momentum < 1:
            raise ValueError(f"InstDisc: momentum must be at least 0 and below 1, got {momentum}")
        if not proximal_weight >= 0:
            raise ValueError(f"InstDisc: proximal_weight must be at least 0, got {proximal_weight}")
        self.momentum, self.proximal_weight = momentum, proximal_weight
        self.projection_head = nn.Linear(self.feature_dim, projection_dim)
        self.bank: Tensor
        self.register_buffer("bank", random_unit_rows(num_samples, projection_dim))

    def rows(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> embeddings (B, D) of unit length in the dtype of the bank."""
        return nn.functional.normalize(self.projection_head(self.embed(images)).to(self.bank.dtype), dim=1)

    def forward(self, images: Tensor, index: Tensor) -> Tensor:
        """images (B, 3, H, W), index (B,) integers: which samples they are -> loss, scalar float32. Training updates the bank."""
        check_tensors("InstDisc", images=images)
        if images.ndim != 4:
            raise ValueError(f"InstDisc: images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        check_integers("InstDisc", "index", index, len(images))
        if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.bank):
            bounds = f"{int(index.min())} to {int(index.max())}"
            raise ValueError(f"InstDisc: index must lie in 0 to {len(self.bank) - 1} (num_samples), got {bounds}")
        index, z = index.long(), self.rows(images)
        dot = dot_rows(z, self.bank[index])
        scale = 1.0 / self.temperature
        others = similarity_lse(z, self.bank, scale=scale, x_id=index.int(), y_id=arange_ids(self.bank))
        loss = softplus(others - scale * dot).mean()
        if self.proximal_weight:
            loss = loss + self.proximal_weight * (2.0 - 2.0 * dot).mean()
        if self.training:
            self.update_bank(z, index)
        return loss

    @torch.no_grad()
    def update_bank(self, z: Tensor, index: Tensor) -> None:
        """Moves the rows ``index`` (B,) of the bank towards z (B, D)."""
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise NotImplementedError("InstDisc: a bank shared by several processes is not there yet; train with one process")
        rows = self.bank[index].lerp(z.detach(), 1.0 - self.momentum)
        self.bank.index_copy_(0, index, nn.functional.normalize(rows, dim=1))

    @torch.no_grad()
    def fill_bank(self, images: Tensor, index: Tensor) -> None:
        """images (B, 3, H, W), index (B,) int64 -> the bank's rows are their embeddings as they are now."""
        self.bank.index_copy_(0, index, self.rows(images))
